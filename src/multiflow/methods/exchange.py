"""Exchange: mask and weights by exact exchanges of weights, each the best that a row's least squares can do. Ours.

With H the damped second moment of a layer's inputs, the error of its outputs, ``tr (X - W) H (X - W)'``, is a problem
of its own in every row once the kept set is chosen, and `Supports` holds its exact solution. From a first mask, in
every row at once, again and again (a panel) among the inputs that promise most:

    forward     4 to 24 weights come in, each the one with the largest fall of the row's error beside those before it
    backward    weights go, each the cheapest of all that the row holds by then, those that have just come in included
    accept      where the error, all weights refitted, plus price times weights is smaller than before

A chain of several steps finds what single swaps cannot: it goes uphill on the way, and is taken back where that was in
vain. The price is the one at which as many weights go as come in, over all rows, in the first two panels; so budgets
move between rows. What they are off by in the end is taken from where it costs least, or given to where it gains most.
Rows where little gains drop out. Under a pattern that fixes the number in each row, or in each group of N:M, as many go
as came in.

The first mask comes from 40 steps of operator splitting as in ALPS (arXiv 2406.07831) and Boza (arXiv 2401.02938), but
from a penalty that is small at first (0.02, 0.06, 0.18, 0.54, each for ten steps, where G has ones on its diagonal):
cheaper than ALPS (one product a step, four inverses, no eigendecomposition) and better. With ``panels=0``, and where
exact solutions are too dear (wide layers at low sparsity: `affordable`), a refit by conjugate gradients ends it there.

Related: optimal brain surgeon and its greedy form OBC (arXiv 2208.11580) drop weights only; swaps without a refit are
those of SparseSwaps (arXiv 2512.10922); CoSaMP and subspace pursuit exchange many at once, without a guarantee;
forward-backward selection of variables is old in statistics. Here every step is exact and every chain that is kept
downhill, weights that are gone come back, and budgets move between rows. One calibration pass of the dense model
serves all sparsities.

Damping is 0.001 times the mean of the diagonal, a tenth of what ALPS and SparseGPT have: exact solutions bear less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import NofM, Pattern, Unstructured
from multiflow.methods.costs import CHOOSING, NUMBER, LayerCost, inversion, product, refitting
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, Scaled, check_ridge, inverse, no_inverse, refit, scaled
from multiflow.methods.supports import CHUNK, Chain, Supports

PENALTY = 0.02  # of the first mask's splitting, where G has ones on its diagonal
FEW = 8  # more inputs are looked at than come in
SHARE, LEAST, DEEPEST = 16, 4, 24  # weights come in before others go: one in 16 of what a row keeps, 4 to 24
PRICED = 2  # panels in which the price is found anew
SHARED = 0.7  # of the rows are in a panel, on average
MORE = 4  # weights more than came in that may go in a row
AMONG = 2  # times as many, the cheapest, are looked at as may go
SPARE = 4  # more weights that a row may hold than any does at first, beside those of a panel
COPIED, ENDED = 0.75, 0.05  # share of rows in work below which they are copied, or the search ends
STILL, SPARSER, GROUPED = 1e-3, 4e-3, 2e-2  # least gains (`still_of`)
SAMPLED = 2  # rows that tell what is typically left of an input
WORTH = 1e-3  # share of its falls that a chain must be better by
HELD = 1 << 25  # numbers of inverses that are held at a time
DEAREST = 100  # products of the weights with G that the first inverses may cost
EVERY, GROW = 10, 3.0  # steps of one penalty, and its growth after them
SETTLED = 1e-2  # share of a mask that may still change in one step of splitting
MOST = 512  # weights that rows may keep, in the mean, for exact solutions
ITERATIONS = 20  # of conjugate gradients at the end of the fast mode
FINISH = 2  # after exact solutions, against what rounding has left


def check(start: int, panels: int, ridge: float) -> None:
    """Refuse what gives no mask, or no inverse."""
    if start < 1:
        raise MultiflowError(f"{{start={start}}} was given; expected at least 1 step", field="start")
    if panels < 0:
        raise MultiflowError(f"{{panels={panels}}} was given; expected at least 0", field="panels")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, start: int, panels: int) -> LayerCost:
    """The first mask, then the inverses of all rows and what is done with them, or the refit of the fast mode."""
    penalties = -(-start // EVERY)
    first = penalties * (inversion(columns) + product(rows, columns)) + start * product(rows, columns, CHOOSING + 12)
    some = depth_of(kept * columns)  # come in, at most
    slots = kept * columns * 1.05 + some + SPARE
    if not panels or kept * columns > MOST or 4 / 3 * (kept * columns) ** 3 > DEAREST * 2 * columns**2:
        return first + refitting(rows, columns, ITERATIONS)
    inverses = 2 * rows * (kept * columns) ** 3 / (1 + kept * columns / 120)  # large ones by halves are faster
    solving = LayerCost(small=inverses, moved=NUMBER * rows * 4 * slots**2) + 8 * product(rows, columns)
    few, drops = 0.75 * some + FEW, 0.75 * some + MORE  # on average
    chain = LayerCost(
        small=rows * slots * (slots * (few + drops + some) + few**2) / 2,  # products, a few times as fast as inverses
        moved=NUMBER * rows * (3 * slots**2 + slots * (6 * few + 8 * drops) + 2 * few * columns),
    )
    a_panel = product(rows, columns, 4) + chain
    most = 1.3 * kept * columns + some + SPARE + 8  # slots, where rows differ
    together = min(rows, max(1, HELD // int(most) ** 2))
    held = LayerCost(held=NUMBER * (together * (1.6 * most**2 + 5 * (some + FEW) * most) + 3 * CHUNK))
    return first + solving + panels * SHARED * a_panel + held


@fitter(allocation="uniform", check=check, cost=cost)
def exchange(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    start: int = 40,
    panels: int = 8,
    ridge: float = 1e-3,
) -> Fitted:
    """Exact exchanges of weights inside and between rows, all kept weights refitted; panels=0 is fast."""
    layer = scaled(weight, input_moment, ridge)
    mask, found = first_mask(layer, choose, start, ridge)
    iterations = ITERATIONS
    if panels and affordable(mask):
        mask, iterations, still = mask.clone(), FINISH, still_of(mask, choose.pattern)
        found = torch.zeros_like(layer.weight)
        for rows in parts_of(mask.sum(1)):
            done = search(layer, mask[rows], rows, choose.pattern, panels, still)
            if done is None:
                raise no_inverse(choose.layer, ridge)
            mask[rows], found[rows] = done
    return mask, refit(layer.weight, mask, layer.moment, iterations, found).div_(layer.scale)


def parts_of(counts: Int[Tensor, " rows"]) -> list[Int[Tensor, " some"]]:
    """Split the rows into parts of about as many weights each, as few as fit into memory."""
    slots = int(counts.max()) + spare_of(counts)
    number = max(-(-len(counts) * slots**2 // HELD), 1)
    return [part.sort().values for part in counts.argsort().tensor_split(min(number, len(counts)))]


def search(
    layer: Scaled, mask: Bool[Tensor, "rows in"], rows: Tensor, pattern: Pattern, panels: int, still: float
) -> tuple[Bool[Tensor, "rows in"], Float[Tensor, "rows in"]] | None:
    """Exchange in some rows, in float32 or, where that is not enough, in float64; None if neither has an inverse."""
    found = solve(layer, mask, rows, pattern, panels, still, layer.weight.dtype)
    if found is not None or layer.weight.dtype == torch.float64:
        return found
    half = -(-len(rows) // 2)  # numbers are twice as large
    parts = [
        solve(layer, some, of, pattern, panels, still, torch.float64)
        for some, of in zip(mask.split(half), rows.split(half), strict=True)
    ]
    done = [part for part in parts if part is not None]
    return None if len(done) < len(parts) else (torch.cat([m for m, _ in done]), torch.cat([w for _, w in done]))


def solve(
    layer: Scaled,
    mask: Bool[Tensor, "rows in"],
    rows: Tensor,
    pattern: Pattern,
    panels: int,
    still: float,
    dtype: torch.dtype,
) -> tuple[Bool[Tensor, "rows in"], Float[Tensor, "rows in"]] | None:
    """The same in one precision; None where it is not enough."""
    try:
        spare = spare_of(mask.sum(1))
        state = Supports.of(layer.moment.to(dtype), layer.weight[rows].to(dtype), mask, spare)
    except torch.linalg.LinAlgError:
        return None
    if not state.accurate:
        return None
    Search(state, pattern, still=still).run(panels)
    state.refine()
    return (state.kept, state.dense().to(layer.weight)) if state.accurate else None


def affordable(mask: Bool[Tensor, "out in"]) -> bool:
    """Whether the first inverses cost little enough, counted in products of the weights with the second moment."""
    solve = 4 / 3 * float(mask.sum(1).double().pow(3).sum())
    return solve <= DEAREST * 2 * mask.numel() * mask.shape[1] and int(mask.sum()) <= MOST * len(mask)


def first_mask(layer: Scaled, choose: Choose, steps: int, ridge: float) -> Fitted:
    """Split the error and the budget by ADMM; return the support of the largest weights, and all the weights.

    Args:
        layer, choose: the weights and their budget.
        steps: products with the inverse; up to as many more until the mask settles.
        ridge: by which the moment is damped, for errors.
    """
    dense, moment = layer.weight, layer.moment
    target, penalty = dense @ moment, PENALTY
    found, dual = dense, torch.zeros_like(dense)  # dual over the penalty
    before = mask = torch.ones_like(dense, dtype=torch.bool)
    for step in range(2 * steps):
        if step % EVERY == 0:
            if step >= steps and int((before ^ mask).sum()) < SETTLED * mask.numel():
                break
            if step:
                penalty, dual = penalty * GROW, dual / GROW
            solve = moment.clone()
            solve.diagonal().add_(penalty)
            solve = inverse(solve, choose.layer, ridge)
            fixed = target @ solve
        ahead = found + dual
        before, mask = mask, choose(ahead.abs())
        sparse = ahead * mask
        dual = ahead - sparse
        found = torch.addmm(fixed, sparse - dual, solve, alpha=penalty)
    return choose(found.abs()), found


def still_of(mask: Bool[Tensor, "out in"], pattern: Pattern) -> float:
    """By which share of its error a row has to gain in a panel, or it is left alone: less where half or more is kept.

    There the last panels still tell; elsewhere, and most of all in groups of N:M, they cost more than they are worth.
    """
    if isinstance(pattern, NofM):
        return GROUPED
    return STILL if 2 * int(mask.sum()) >= mask.numel() else SPARSER


def depth_of(kept: float) -> int:
    """How many weights come in at once, at most, in rows that keep so many."""
    return min(DEEPEST, max(LEAST, round(kept / SHARE)))


def spare_of(counts: Int[Tensor, " rows"]) -> int:
    return depth_of(float(counts.double().mean())) + SPARE


@dataclass
class Search:
    """The exchanges of some rows.

    Args:
        state: changed in place.
        pattern: which weights may go together.
        excess: by how many weights the rows are above their budget together.
        price: of a weight, or None before it is known.
        still: share of its error by which a row has to gain in a panel, or it is left alone.
    """

    state: Supports
    pattern: Pattern
    excess: int = 0
    price: float | None = None
    still: float = STILL

    def __post_init__(self) -> None:
        self.room = self.state.left(SAMPLED)

    def run(self, panels: int) -> None:
        """Exchange until nothing gains, at most that many panels long; then meet the budget."""
        some, at = self.state, torch.arange(len(self.state.place), device=self.room.device)
        active = torch.ones_like(at, dtype=torch.bool)
        depth = depth_of(float((~self.state.free).sum(1).double().mean()))
        for number in range(panels):
            active &= self._exchange(some, max(LEAST, depth // (1 + number % 2)), number < PRICED)
            left = int(active.sum())
            if left <= ENDED * len(self.state.place):
                break
            if left <= COPIED * len(at):
                if some is not self.state:
                    self.state.put(at, some)
                at = at[active]
                some = self.state.take(at)
                active = torch.ones_like(at, dtype=torch.bool)
        if some is not self.state:
            self.state.put(at, some)
        self._meet()

    def _exchange(self, rows: Supports, depth: int, priced: bool) -> Bool[Tensor, " rows"]:
        """Let weights in and others go in every row that gains by it; return the rows that gain much."""
        free = isinstance(self.pattern, Unstructured)
        chain = self._open(rows, depth)
        chain.enter()
        entered = chain.on.sum(1)
        of, among = 0, AMONG * (depth + MORE)
        if isinstance(self.pattern, NofM):
            of, among = self.pattern.of, int(entered.max()) * (self.pattern.keep + 1)
        rises = chain.leave(max(1, int(entered.max()) + MORE * free), among, of)
        drops, price = entered, 0.0
        if isinstance(self.pattern, Unstructured):
            dearest = rises.cummax(1).values
            if priced or self.price is None:
                wanted = min(max(int(entered.sum()) + self.excess, 1), int(dearest.isfinite().sum()))
                self.price = float(dearest.flatten().kthvalue(wanted).values)
            price = self.price
            drops = (dearest <= price).sum(1)
        done = torch.arange(rises.shape[1], device=drops.device) < drops[:, None]
        change = torch.where(done, rises, 0.0).sum(1) - chain.falls.sum(1) + price * (entered - drops)
        good = change < -WORTH * chain.falls.sum(1)
        before = -(chain.slope * rows.weight).sum(1)
        chain.keep(drops, good)
        self.excess += int((entered - drops)[good].sum())
        return good & (change < -self.still * before)

    def _open(self, rows: Supports, depth: int) -> Chain:
        """Look at those of the inputs that promise most."""
        slope = rows.slope().masked_fill_(rows.kept, 0.0)  # of the error, minus its product with w
        promise, few = slope.square() / self.room, depth + FEW
        if isinstance(self.pattern, NofM):  # one of the same group has to go
            least = rows.costs().unflatten(1, (-1, self.pattern.of)).amin(2)
            promise, few = promise - least.repeat_interleave(self.pattern.of, 1), depth
        promise.masked_fill_(rows.kept, -torch.inf)
        few = min(few, promise.shape[1])
        return Chain(rows, promise.topk(few, 1).indices, slope, min(depth, few))

    def _meet(self) -> None:
        """Give back what is above the budget where it costs least, or fill it up where it gains most."""
        while self.excess:
            some, number = self.state, abs(self.excess)
            steps = min(some.width, 2 * -(-number // len(some.place)) + MORE)
            if self.excess > 0:
                chain = Chain(some, some.place[:, :0], some.slope(), 0)
                chain.enter()
                worth = -chain.leave(steps, AMONG * steps).cummax(1).values
            else:
                chain = self._open(some, steps)
                worth = chain.falls.cummin(1).values.masked_fill(chain.falls <= 0, -torch.inf)
            number = min(number, int(worth.isfinite().sum()))
            best = worth.flatten().topk(number).indices // worth.shape[1]
            counts = torch.bincount(best, minlength=len(worth))
            if self.excess < 0:
                chain.enter(counts)
            chain.keep(counts * (self.excess > 0), counts > 0)
            self.excess += number if self.excess < 0 else -number
