"""Exact least squares on a support in every row of a layer, kept up to date as weights come and go.

With G the second moment of a layer's inputs, S what a row keeps and A = (G_SS)^-1, each row holds A and its weights
``v = A (G w)_S``, the best on S. With g = (v - w) G, which is zero on S, and r = A G_Su,

    bringing u in lowers the row's error by    g_u^2 / R_u,    R_u = G_uu - G_uS r
    dropping k from S raises it by             v_k^2 / A_kk
    dropping k from S + u raises it by         (v_k + r_k g_u / R_u)^2 / (A_kk + r_k^2 / R_u)

when all weights of the row are refitted. Either changes A by a matrix of rank one. All rows go together, and a `Panel`
does several steps among a few inputs of each row before A itself is touched.
A row has slots for the weights that it keeps and some free ones, whose rows and columns of A are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 1 << 19  # numbers that are inverted at a time: they stay in the cache
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
            block = padded[place[some, :own, None], place[some, None, :own]]
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
        return Supports(self.moment, *(part[rows] for part in (self.weight, self.place, self.solved, self.values)))

    def put(self, rows: Int[Tensor, " some"], other: Supports) -> None:
        """Write some rows back."""
        for mine, new in ((self.place, other.place), (self.solved, other.solved), (self.values, other.values)):
            mine[rows] = new

    def left(self, rows: int) -> Float[Tensor, " in"]:
        """R of every input, in the middle (geometric) of some of the rows: a guess for all of them."""
        some = self.take(torch.linspace(0, len(self.place) - 1, min(rows, len(self.place))).round().long())
        between = some.moment[some.place][:, :, :-1]  # G_S., (rows, slots, in)
        left = some.moment.diagonal()[:-1] - (multiply(some.solved, between) * between).sum(1)
        out = (~some.kept).to(left) + 1e-6
        return (left.clamp(min=10 * LEAST).log() * out).sum(0).div_(out.sum(0)).exp_()


class Panel:
    """Steps among a few inputs of every row, and what follows from them for these alone until `close`.

    Args:
        rows: changed in place.
        columns: the inputs.
        slope: g there.
    """

    def __init__(self, rows: Supports, columns: Int[Tensor, "rows few"], slope: Float[Tensor, "rows few"]) -> None:
        self.rows, self.columns, self.slope = rows, columns, slope
        self.every = torch.arange(len(columns), device=columns.device)
        between = rows.moment[rows.place[:, :, None], columns[:, None, :]]  # G_SC
        self.rest = multiply(rows.solved, between)  # r of each
        self.room = rows.moment[columns[:, :, None], columns[:, None, :]] - between.mT @ self.rest  # R, with pairs
        self.diagonal = rows.solved.diagonal(dim1=1, dim2=2).clone()
        self.steps: list[tuple[Tensor, Tensor]] = []

    def falls(self) -> Float[Tensor, "rows few"]:
        """By how much the errors fall when an input comes in; 0 where it is in, or not to be told from what is."""
        own = self.room.diagonal(dim1=1, dim2=2)
        return torch.where(own > LEAST, self.slope.square() / own, 0.0)

    def costs(self) -> Float[Tensor, "rows slots"]:
        """By how much the errors rise when the weight in a slot goes; infinite where the slot is free."""
        return torch.where(self.rows.free, torch.inf, self.rows.values.square() / self.diagonal.clamp(min=1e-30))

    def rises(self) -> Float[Tensor, "rows slots few"]:
        """The same, once one of the inputs is in."""
        own = self.room.diagonal(dim1=1, dim2=2).clamp(min=LEAST)
        rises = torch.addcmul(self.rows.values[:, :, None], self.rest, (self.slope / own)[:, None]).square_()
        rises /= torch.addcmul(self.diagonal[:, :, None], self.rest, self.rest / own[:, None]).clamp_(min=1e-30)
        return rises.masked_fill_(self.rows.free[:, :, None], torch.inf)

    def bring_in(self, which: Int[Tensor, " rows"], on: Bool[Tensor, " rows"]) -> None:
        """Keep one more weight, of the given one of the inputs, in those rows that are on."""
        slot = self.rows.free.to(torch.uint8).argmax(1)
        rest = self.rest[self.every, :, which].index_put_((self.every, slot), self.rest.new_tensor(-1.0))
        cross = self.room[self.every, which].clone()
        factor = torch.where(on, 1 / cross[self.every, which].clamp(min=LEAST), 0.0)
        self._bend(rest, factor, self.slope[self.every, which], cross, -1.0)
        self.rows.place[self.every[on], slot[on]] = self.columns[self.every, which][on]

    def drop(self, slot: Int[Tensor, " rows"], on: Bool[Tensor, " rows"]) -> None:
        """Keep one weight fewer in those rows that are on."""
        rest = self.rows.solved[self.every, slot]
        for other, factor in self.steps:
            rest = rest.addcmul_(other, (factor * other[self.every, slot])[:, None])
        factor = torch.where(on, -1 / rest[self.every, slot].clamp(min=1e-30), 0.0)
        self._bend(rest, factor, self.rows.values[self.every, slot], self.rest[self.every, slot].clone(), 1.0)
        every, slot = self.every[on], slot[on]
        self.rest[every, slot] = 0.0
        self.rows.values[every, slot] = 0.0
        self.rows.place[every, slot] = self.rows.width

    def _bend(self, rest: Tensor, factor: Tensor, part: Tensor, cross: Tensor, sign: float) -> None:
        """Add ``factor rest rest'`` to A and ``factor part rest`` to v, and what follows for the inputs."""
        scaled, crossed = rest * factor[:, None], cross * factor[:, None]
        self.steps.append((rest, factor))
        self.rows.values.addcmul_(scaled, part[:, None])
        self.diagonal.addcmul_(scaled, rest)
        self.rest.addcmul_(scaled[:, :, None], cross[:, None, :], value=sign)
        self.room.addcmul_(crossed[:, :, None], cross[:, None, :], value=-1.0)
        self.slope.addcmul_(crossed, part[:, None], value=sign)

    def close(self) -> None:
        """Bring A up to date."""
        if self.steps:
            none = [torch.zeros_like(part) for part in self.steps[0]]
            steps = self.steps + [none] * (-len(self.steps) % WIDE)
            rests = torch.stack([rest for rest, _ in steps], 2)
            factors = torch.stack([factor for _, factor in steps], 1)
            self.rows.solved.baddbmm_(rests, (rests * factors[:, None]).mT)
            free = self.rows.free.nonzero(as_tuple=True)
            self.rows.solved[free] = 0.0
            self.rows.solved.mT[free] = 0.0
        self.steps = []


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
