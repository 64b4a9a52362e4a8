"""Exact least squares on a support in every row of a layer, kept up to date as weights come and go.

With G the second moment of a layer's inputs, S what a row keeps and A = (G_SS)^-1, each row holds A and its weights
``v = A (G w)_S``, the best on S. With g = (v - w) G, which is zero on S, and, for inputs C, ``r = A G_SC`` and
``R = G_CC - G_CS r``,

    bringing u in lowers the row's error by    g_u^2 / R_uu,  and leaves  g - g_u R_.u / R_uu,  R - R_.u R_u. / R_uu
    inputs E together change A and v by        r R^-1 r'  and  r R^-1 g_E,  with -1 in r where a weight itself stands
    dropping k raises the error by             v_k^2 / A_kk,  and leaves  A - A_.k A_k. / A_kk,  v - A_.k v_k / A_kk

when all weights of the row are refitted. All rows go together; a `Chain` tells what several steps are worth before A
itself is touched.
A row has slots for the weights that it keeps and some free ones, whose rows and columns of A are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 1 << 19  # numbers that are inverted at a time: they stay in the cache
TINY = 1e-30
SMALL = 48  # matrices up to this size are inverted by the library
WIDE = 8  # numbers that a processor takes at once: products of sizes that it divides are up to twice as fast
LEAST = 1e-4  # of its unit that an input must have left beside what a row keeps, to be told apart from it


@dataclass
class Supports:
    """Some rows of a layer.

    Args:
        moment: G with a row and a column of zeros behind, ``(in + 1, in + 1)``.
        weight: w.
        place: which input a slot holds, ``in`` where it is free.
        solved: A.
        values: v by slot.
    """

    moment: Tensor
    weight: Float[Tensor, "rows in"]
    place: Int[Tensor, "rows slots"]
    solved: Float[Tensor, "rows slots slots"]
    values: Float[Tensor, "rows slots"]

    @staticmethod
    def of(
        moment: Float[Tensor, "in in"], weight: Float[Tensor, "rows in"], mask: Bool[Tensor, "rows in"], spare: int
    ) -> Supports:
        """Solve every row from the start, with slots for ``spare`` more weights."""
        rows, width = mask.shape
        slots = -(-(int(mask.sum(1).max()) + spare) // WIDE) * WIDE
        spare = max(spare, slots - width)
        inputs = torch.where(mask, torch.arange(width, device=mask.device), width)
        place = pad(inputs, (0, spare), value=width).sort(1).values[:, :slots]
        padded = pad(moment, (0, 1, 0, 1))
        solved = moment.new_zeros(rows, slots, slots)
        counts, order = mask.sum(1).sort()
        for some in order.split(max(1, CHUNK // slots**2)):  # of about as many weights each
            own = max(1, int(counts[order == some[-1]]))
            block = gathered(padded, place[some, :own])
            free = (place[some, :own] == width).to(moment)
            block.diagonal(dim1=1, dim2=2).add_(free)
            block = invert(block)
            block.diagonal(dim1=1, dim2=2).sub_(free)
            solved[some, :own, :own] = block
        found = Supports(padded, weight, place, solved, moment.new_zeros(rows, slots))
        found.refine()
        found.refine()
        return found

    @property
    def width(self) -> int:
        """Number of inputs."""
        return self.weight.shape[1]

    @property
    def free(self) -> Bool[Tensor, "rows slots"]:
        """Slots that hold no weight."""
        return self.place == self.width

    @property
    def kept(self) -> Bool[Tensor, "rows in"]:
        """The mask."""
        zeros = torch.zeros(len(self.place), self.width + 1, dtype=torch.bool, device=self.place.device)
        return zeros.scatter_(1, self.place, True)[:, :-1]

    def dense(self) -> Float[Tensor, "rows in"]:
        """The weights by input, zero where none is kept."""
        zeros = self.values.new_zeros(len(self.values), self.width + 1)
        return zeros.scatter_(1, self.place, self.values)[:, :-1]

    def costs(self) -> Float[Tensor, "rows in"]:
        """By how much the error of a row rises when a weight goes, by input; infinite where none is kept."""
        costs = self.values.square() / self.solved.diagonal(dim1=1, dim2=2).clamp(min=TINY)
        endless = costs.new_full((len(costs), self.width + 1), torch.inf)
        return endless.scatter_(1, self.place, costs.masked_fill_(self.free, torch.inf))[:, :-1]

    def slope(self) -> Float[Tensor, "rows in"]:
        """g, by input."""
        return (self.dense() - self.weight) @ self.moment[:-1, :-1]

    def refine(self) -> None:
        """Take rounding out of the values, by one step of iterative refinement."""
        slope = pad(self.slope(), (0, 1)).gather(1, self.place)
        self.values -= multiply(self.solved, slope[:, :, None])[:, :, 0]

    @property
    def accurate(self) -> bool:
        """Whether g is zero on S, up to a thousandth of what it is without any weight: A is not lost in rounding."""
        left = pad(self.slope(), (0, 1)).gather(1, self.place)
        whole = self.weight @ self.moment[:-1, :-1]
        return bool((left.norm(dim=1) <= 1e-3 * whole.norm(dim=1) + torch.finfo(left.dtype).tiny).all())

    def take(self, rows: Int[Tensor, " some"]) -> Supports:
        """Copy some rows."""
        parts = (self.weight, self.place, self.solved, self.values)
        return Supports(self.moment, *(part.index_select(0, rows) for part in parts))

    def put(self, rows: Int[Tensor, " some"], other: Supports) -> None:
        """Write some rows back."""
        for mine, new in ((self.place, other.place), (self.solved, other.solved), (self.values, other.values)):
            mine.index_copy_(0, rows, new)

    def left(self, rows: int) -> Float[Tensor, " in"]:
        """What is left of every input beside the others that a row keeps, in the middle of some rows: R, or 1 / A."""
        some = self.take(torch.linspace(0, len(self.place) - 1, min(rows, len(self.place))).round().long())
        between = rows_at(some.moment, some.place)[:, :, :-1]  # G_S.
        left = some.moment.diagonal()[:-1] - (multiply(some.solved, between) * between).sum(1)
        own = pad(left, (0, 1)).scatter(1, some.place, 1 / some.solved.diagonal(dim1=1, dim2=2).clamp(min=TINY))
        return torch.where(some.kept, own[:, :-1], left).clamp(min=10 * LEAST).log().mean(0).exp()


class Chain:
    """Weights that come in and others that go, one after the other, in every row: their worth before it is done.

    Args:
        rows: changed by `keep` alone.
        columns: the inputs that may come in.
        slope: g of all inputs.
        most: how many come in at most; fewer where nothing is gained or no slot is free.
    """

    def __init__(
        self, rows: Supports, columns: Int[Tensor, "rows few"], slope: Float[Tensor, "rows in"], most: int
    ) -> None:
        self.rows, self.slope = rows, slope
        beside = rows_at(rows.moment, columns)
        between = beside.gather(2, rows.place[:, None].expand(-1, columns.shape[1], -1))  # G_CS
        self.rest = between @ rows.solved  # r of each, (rows, few, slots)
        self.room = beside.gather(2, columns[:, None].expand(-1, columns.shape[1], -1))  # G_CC
        self.room = torch.baddbmm(self.room, self.rest, between.mT, alpha=-1.0)  # R, with pairs
        self.chosen, self.falls = forward(self.room, slope.gather(1, columns), rows.free.sum(1), most)
        self.columns = columns

    def enter(self, most: Int[Tensor, " rows"] | None = None) -> None:
        """Let all in by which the errors fall, or the first of them."""
        rows, picked = self.rows, self.chosen[:, :, None]
        on = self.falls > 0
        if most is not None:
            on &= torch.arange(on.shape[1], device=on.device) < most[:, None]
        own = self.room.gather(1, picked.expand(-1, -1, self.room.shape[2])).gather(
            2, picked.mT.expand(-1, on.shape[1], -1)
        )
        own = own * (on[:, :, None] & on[:, None]) + torch.diag_embed((~on).to(own))
        slots = rows.free.to(torch.uint8).topk(on.shape[1], 1).indices
        self.rest = self.rest.gather(1, picked.expand(-1, -1, self.rest.shape[2])) * on[:, :, None]
        self.rest.scatter_(2, slots[:, :, None], -on.to(own)[:, :, None])
        self.bent = inverse_of_few(own) @ self.rest  # R^-1 r
        slope = self.slope.gather(1, self.columns).gather(1, self.chosen) * on
        self.values = rows.values + (slope[:, None] @ self.bent)[:, 0]
        self.inputs = self.columns.gather(1, self.chosen)
        self.place = rows.place.scatter(1, slots, torch.where(on, self.inputs, rows.place.gather(1, slots)))
        self.on = on

    def leave(self, drops: int, among: int, of: int = 0) -> Float[Tensor, "rows drops"]:
        """Let go the cheapest weight of every row, again and again; return by how much the errors rise.

        Args:
            drops: how many times.
            among: of how many, those that are cheapest at first.
            of: size of the groups, out of each of which as many go as came in; 0 if there are none.
        """
        rows = self.rows
        diagonal = rows.solved.diagonal(dim1=1, dim2=2) + (self.bent * self.rest).sum(1)
        costs = self.values.square() / diagonal.clamp(min=TINY)
        over = None
        if of:
            last = rows.width // of
            over = torch.zeros(len(costs), last + 1, dtype=torch.long, device=costs.device)
            over.scatter_add_(1, self.inputs // of, self.on.long())
            over[:, last] = 0
            costs.masked_fill_(
                over.gather(1, self.place.div(of, rounding_mode="floor").clamp(max=last)) == 0, torch.inf
            )
        costs.masked_fill_(self.place == rows.width, torch.inf)
        some = costs.topk(min(among, costs.shape[1]), 1, largest=False)
        slots = some.indices
        wide = slots[:, None].expand(-1, self.rest.shape[1], -1)
        solved = lines(rows.solved, slots).gather(2, slots[:, None].expand(-1, slots.shape[1], -1))
        solved = torch.baddbmm(solved, self.rest.gather(2, wide).mT, self.bent.gather(2, wide))
        group = None if over is None else self.place.gather(1, slots).div(of, rounding_mode="floor").clamp(max=last)
        gone, self.rises = backward(solved, self.values.gather(1, slots), some.values.isinf(), drops, over, group)
        self.gone = slots.gather(1, gone)
        return self.rises

    def keep(self, drops: Int[Tensor, " rows"], good: Bool[Tensor, " rows"]) -> None:
        """Do it in the rows that are good, with the first ``drops`` of what was let go, and leave the others alone."""
        rows, place, values = self.rows, self.place, self.values
        left, right = [self.bent * good[:, None, None]], [self.rest]
        most = int(drops.max())
        if most:
            gone = self.gone[:, :most]
            done = torch.arange(most, device=drops.device) < drops[:, None]
            wide = gone[:, None].expand(-1, self.rest.shape[1], -1)
            parts = lines(rows.solved, gone)
            parts = torch.baddbmm(parts, self.rest.gather(2, wide).mT, self.bent)  # of A, (rows, drops, slots)
            own = parts.gather(2, gone[:, None].expand(-1, most, -1)) * (done[:, :, None] & done[:, None])
            shares = inverse_of_few(own + torch.diag_embed((~done).to(own))) * done[:, None] @ parts
            values = values - ((values.gather(1, gone) * done)[:, None] @ shares)[:, 0]
            dropped = torch.zeros_like(place).scatter_add_(1, gone, done.long()) > 0
            place, values = place.masked_fill(dropped, rows.width), values.masked_fill(dropped, 0.0)
            left.append(shares.neg_() * good[:, None, None])
            right.append(parts * done[:, :, None])
        rows.values = torch.where(good[:, None], values, rows.values)
        rows.place = torch.where(good[:, None], place, rows.place)
        rows.solved.baddbmm_(torch.cat(left, 1).mT, torch.cat(right, 1))
        if most:
            row, slot = (dropped & good[:, None]).nonzero(as_tuple=True)
            rows.solved[row, slot] = 0.0
            rows.solved[row, :, slot] = 0.0


def forward(
    room: Float[Tensor, "rows few few"], slope: Float[Tensor, "rows few"], free: Int[Tensor, " rows"], most: int
) -> tuple[Int[Tensor, "rows most"], Float[Tensor, "rows most"]]:
    """Choose inputs one after the other, each with the largest fall beside those before it.

    Returns:
        The inputs, whether each comes in, and by how much the errors fall then.
    """
    room, slope = room.clone(), slope.clone()
    every = torch.arange(len(room), device=room.device)
    chosen = [free.new_zeros(len(room), 0)]
    falls = [room.new_zeros(len(room), 0)]
    for number in range(most):
        own = room.diagonal(dim1=1, dim2=2)
        fall, which = torch.where(own > LEAST, slope.square() / own.clamp(min=TINY), 0.0).max(1)
        fall = torch.where(free > number, fall, 0.0)
        chosen.append(which[:, None])
        falls.append(fall[:, None])
        cross = room[every, which]
        share = torch.where(fall > 0, 1 / cross[every, which].clamp(min=LEAST), 0.0)[:, None]
        slope = slope - cross * share * slope.gather(1, which[:, None])
        room = room - (cross * share)[:, :, None] * cross[:, None]
        room[every, which, which] = 0.0
    return torch.cat(chosen, 1), torch.cat(falls, 1)


def backward(
    solved: Float[Tensor, "rows some some"],
    values: Float[Tensor, "rows some"],
    barred: Bool[Tensor, "rows some"],
    drops: int,
    over: Tensor | None,
    group: Tensor | None,
) -> tuple[Int[Tensor, "rows drops"], Float[Tensor, "rows drops"]]:
    """Let weights go one after the other, each the cheapest by then; return which, and by how much the errors rise."""
    every = torch.arange(len(solved), device=solved.device)
    diagonal = solved.diagonal(dim1=1, dim2=2).clone()
    parts = solved.new_empty(len(solved), drops, solved.shape[1])
    gone, rises = [], []
    barred = barred.clone()
    for number in range(drops):
        costs = values.square() / diagonal.clamp(min=TINY)
        rise, slot = costs.masked_fill_(barred, torch.inf).min(1)
        part = solved[every, slot]
        if number:
            before = parts[:, :number]
            part = part - (before[every, :, slot][:, None] @ before)[:, 0]
        own = part[every, slot].clamp(min=TINY)
        part = part * own.rsqrt()[:, None]
        part.masked_fill_(rise.isinf()[:, None], 0.0)  # nothing is left to go
        values = values - part * (values[every, slot] / part[every, slot].clamp(min=TINY))[:, None]
        diagonal -= part.square()
        barred[every, slot] = True
        if over is not None and group is not None:
            over[every, group[every, slot]] -= 1
            barred |= over.gather(1, group) <= 0
        parts[:, number] = part
        gone.append(slot)
        rises.append(rise)
    return torch.stack(gone, 1), torch.stack(rises, 1)


def lines(matrices: Float[Tensor, "rows n n"], which: Int[Tensor, "rows few"]) -> Float[Tensor, "rows few n"]:
    """Copy some rows of each matrix."""
    first = torch.arange(len(which), device=which.device)[:, None] * matrices.shape[1]
    return rows_at(matrices.flatten(0, 1), which + first)


def rows_at(matrix: Float[Tensor, "n columns"], which: Int[Tensor, "rows few"]) -> Float[Tensor, "rows few columns"]:
    """Copy rows of a matrix, whole ones at a time, which is several times as fast as by any other index."""
    return matrix.index_select(0, which.flatten()).unflatten(0, which.shape)


def inverse_of_few(matrices: Float[Tensor, "rows few few"]) -> Float[Tensor, "rows few few"]:
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrices).L)


def gathered(matrix: Float[Tensor, "width width"], place: Int[Tensor, "rows n"]) -> Float[Tensor, "rows n n"]:
    """Take rows and columns of a matrix, the same ones: in two steps, which is twice as fast as in one."""
    return torch.stack([matrix.index_select(0, one).index_select(1, one) for one in place])


def multiply(matrices: Float[Tensor, "rows n n"], vectors: Float[Tensor, "rows n few"]) -> Float[Tensor, "rows n few"]:
    """Multiply symmetric matrices by a few vectors each, from the side that is several times faster."""
    return (vectors.mT.contiguous() @ matrices).mT


def invert(matrices: Float[Tensor, "many n n"]) -> Float[Tensor, "many n n"]:
    """Invert positive definite matrices, large ones by halves: products are faster than factors."""
    size = matrices.shape[1]
    if size <= SMALL:
        return torch.cholesky_inverse(torch.linalg.cholesky(matrices))
    half = size // 2
    first = invert(matrices[:, :half, :half])
    cross = first @ matrices[:, :half, half:]
    last = invert(torch.baddbmm(matrices[:, half:, half:], matrices[:, half:, :half], cross, alpha=-1.0))
    found, between = torch.empty_like(matrices), cross @ last
    found[:, half:, half:] = last
    found[:, :half, half:] = between.neg()
    found[:, half:, :half] = between.mT.neg()
    found[:, :half, :half] = torch.baddbmm(first, between, cross.mT)
    return found
