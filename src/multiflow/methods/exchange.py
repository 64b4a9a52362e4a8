"""Exchange: mask and weights by exact exchanges of weights, each the best that a row's least squares can do. Ours.

With H the damped second moment of a layer's inputs, the error of its outputs, ``tr (X - W) H (X - W)'``, is a problem
of its own in every row once the kept set is chosen, and `Supports` holds its exact solution. From a first mask, in
every row at once, again and again among the inputs that promise most (`Panel`):

    swap    the pair (u in, k out) with the largest fall of the row's error, all its weights refitted
    take    u alone, where the fall is above the price of a weight
    give    k alone, where the rise is below that price

The price is the one at which as many weights are given as taken; it is found anew in the first panels, then fixed, so
that error plus price times weights falls with every step and the search ends. What the budget is off by then is taken
from where it costs least, or given to where it gains most. Rows where nothing gains drop out. Under a pattern that
fixes the number in each row, or in each group of N:M, there are swaps alone.

The first mask comes from 30 steps of operator splitting as in ALPS (arXiv 2406.07831) and Boza (arXiv 2401.02938), but
from a penalty that is small at first (0.05, 0.15, 0.45, each for ten steps, where G has ones on its diagonal): that is
cheaper than ALPS (one product a step, three inverses, no eigendecomposition) and better. With ``panels=0``, and where
exact solutions are too dear (wide layers at low sparsity: `affordable`), a refit by conjugate gradients ends it there.

Related: optimal brain surgeon and its greedy form OBC (arXiv 2208.11580) drop weights only; swaps without a refit are
those of SparseSwaps (arXiv 2512.10922); CoSaMP and subspace pursuit exchange many at once, without a guarantee. Here
every step is exact and downhill, weights that are gone come back, and budgets move between rows. One calibration pass
of the dense model serves all sparsities.

Damping is 0.001 times the mean of the diagonal, a tenth of what ALPS and SparseGPT have: exact solutions bear less.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import NofM, Pattern, Unstructured
from multiflow.methods.costs import CHOOSING, NUMBER, LayerCost, inversion, product, refitting
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, Scaled, check_ridge, inverse, no_inverse, refit, scaled
from multiflow.methods.supports import CHUNK, Panel, Supports

PENALTY = 0.05  # of the first mask's splitting, where G has ones on its diagonal
FEW, STEPS = 16, 8  # inputs in a panel, and steps among them
PRICED = 6  # panels in which the price is found anew
SPARE = 6  # more weights that a row may hold than any does at first
SAMPLED = 8  # rows that tell what is typically left of an input
WORTH = 1e-3  # share of a fall that an exchange must be better by
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
        raise MultiflowError(f"start {start} was given; expected at least 1 step")
    if panels < 0:
        raise MultiflowError(f"panels {panels} was given; expected at least 0")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, start: int, panels: int) -> LayerCost:
    """The first mask, then the inverses of all rows and what is done with them, or the refit of the fast mode."""
    penalties = -(-start // EVERY)
    first = penalties * (inversion(columns) + product(rows, columns)) + start * product(rows, columns, CHOOSING + 12)
    slots = kept * columns * 1.1 + SPARE
    if not panels or kept * columns > MOST or 4 / 3 * (kept * columns) ** 3 > DEAREST * 2 * columns**2:
        return first + refitting(rows, columns, ITERATIONS)
    inverses = 2 * rows * (kept * columns) ** 3 / (1 + kept * columns / 120)  # large ones by halves are faster
    solving = LayerCost(small=inverses, moved=NUMBER * rows * 4 * slots**2) + 8 * product(rows, columns)
    a_row = 2.1 * slots**2 + 4.5 * slots * FEW * 14 + 8 * columns
    a_panel = product(rows, columns) + LayerCost(moved=NUMBER * rows * a_row)
    most = 1.3 * kept * columns + SPARE + 8  # slots, where rows differ
    together = min(rows, max(1, HELD // int(most) ** 2))
    held = LayerCost(held=NUMBER * (together * (1.6 * most**2 + 8 * FEW * most) + 3 * CHUNK))
    return first + solving + panels * a_panel + held


@fitter(allocation="uniform", check=check, cost=cost)
def exchange(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    start: int = 30,
    panels: int = 8,
    ridge: float = 1e-3,
) -> Fitted:
    """Exact exchanges of weights inside and between rows, all kept weights refitted; panels=0 is fast."""
    layer = scaled(weight, input_moment, ridge)
    mask = first_mask(layer, choose, start, ridge)
    found = None
    if panels and affordable(mask):
        mask = mask.clone()
        slots = int(mask.sum(1).max()) + SPARE
        found = torch.zeros_like(layer.weight)
        for rows in torch.arange(len(mask), device=mask.device).split(max(1, HELD // slots**2)):
            done = search(layer, mask[rows], rows, choose.pattern, panels)
            if done is None:
                raise no_inverse(choose.layer, ridge)
            mask[rows], found[rows] = done
    iterations = ITERATIONS if found is None else FINISH
    return mask, refit(layer.weight, mask, layer.moment, iterations, found).div_(layer.scale)


def search(
    layer: Scaled, mask: Bool[Tensor, "rows in"], rows: Tensor, pattern: Pattern, panels: int
) -> tuple[Bool[Tensor, "rows in"], Float[Tensor, "rows in"]] | None:
    """Exchange in some rows, in float32 or, where that is not enough, in float64; None if neither has an inverse."""
    found = solve(layer, mask, rows, pattern, panels, layer.weight.dtype)
    if found is not None or layer.weight.dtype == torch.float64:
        return found
    half = -(-len(rows) // 2)  # numbers are twice as large
    parts = [
        solve(layer, some, of, pattern, panels, torch.float64)
        for some, of in zip(mask.split(half), rows.split(half), strict=True)
    ]
    done = [part for part in parts if part is not None]
    return None if len(done) < len(parts) else (torch.cat([m for m, _ in done]), torch.cat([w for _, w in done]))


def solve(
    layer: Scaled, mask: Bool[Tensor, "rows in"], rows: Tensor, pattern: Pattern, panels: int, dtype: torch.dtype
) -> tuple[Bool[Tensor, "rows in"], Float[Tensor, "rows in"]] | None:
    """The same in one precision; None where it is not enough."""
    try:
        state = Supports.of(layer.moment.to(dtype), layer.weight[rows].to(dtype), mask, SPARE)
    except torch.linalg.LinAlgError:
        return None
    if not state.accurate:
        return None
    Search(state, pattern).run(panels)
    state.refine()
    return (state.kept, state.dense().to(layer.weight)) if state.accurate else None


def affordable(mask: Bool[Tensor, "out in"]) -> bool:
    """Whether the first inverses cost little enough, counted in products of the weights with the second moment."""
    solve = 4 / 3 * float(mask.sum(1).double().pow(3).sum())
    return solve <= DEAREST * 2 * mask.numel() * mask.shape[1] and int(mask.sum()) <= MOST * len(mask)


def first_mask(layer: Scaled, choose: Choose, steps: int, ridge: float) -> Bool[Tensor, "out in"]:
    """Split the error and the budget by ADMM; return the support of the largest weights.

    Args:
        layer, choose: the weights and their budget.
        steps: products with the inverse; up to as many more until the mask settles.
        ridge: by which the moment is damped, for errors.
    """
    dense, moment = layer.weight, layer.moment
    target, penalty = dense @ moment, PENALTY
    found, dual = dense, torch.zeros_like(dense)  # dual over the penalty
    mask = torch.ones_like(dense, dtype=torch.bool)
    stirred = dense.numel()
    for step in range(2 * steps):
        if step >= steps and step % EVERY == 0 and stirred < SETTLED * mask.numel():
            break
        if step % EVERY == 0:
            if step:
                penalty, dual = penalty * GROW, dual / GROW
            solve = moment.clone()
            solve.diagonal().add_(penalty)
            solve = inverse(solve, choose.layer, ridge)
            fixed = target @ solve
        ahead = found + dual
        before, mask = mask, choose(ahead.abs())
        stirred = int((before ^ mask).sum())
        sparse = ahead * mask
        dual = ahead - sparse
        found = torch.addmm(fixed, sparse - dual, solve, alpha=penalty)
    return choose(found.abs())


@dataclass
class Search:
    """The exchanges of some rows.

    Args:
        state: changed in place.
        pattern: which weights may go together.
        excess: by how many weights the rows are above their budget together.
        price: of a weight, or None before it is known.
    """

    state: Supports
    pattern: Pattern
    excess: int = 0
    price: Tensor | None = None

    def __post_init__(self) -> None:
        self.room = self.state.left(SAMPLED)

    def run(self, panels: int) -> None:
        """Exchange until nothing gains, at most that many panels long; then meet the budget."""
        active = torch.arange(len(self.state.place), device=self.room.device)
        opened = 0
        while len(active) and opened < panels:
            whole = len(active) == len(self.state.place)
            some = self.state if whole else self.state.take(active)
            moved = torch.ones(len(active), dtype=torch.bool, device=active.device)
            while opened < panels and int(moved.sum()) * 2 >= len(active):
                moved = self._exchange(some, opened < PRICED)
                opened += 1
            if not whole:
                self.state.put(active, some)
            active = active[moved]
        self._meet()

    def _exchange(self, rows: Supports, priced: bool) -> Bool[Tensor, " rows"]:
        """Open a panel, and take steps in it as long as many rows gain; return those that did."""
        panel = self._open(rows, FEW)
        moved = torch.zeros(len(rows.place), dtype=torch.bool, device=self.room.device)
        for _ in range(STEPS):
            now = self._step(panel, priced)
            moved |= now
            if 4 * int(now.sum()) < len(now):
                break
        panel.close()
        return moved

    def _step(self, panel: Panel, priced: bool) -> Bool[Tensor, " rows"]:
        """Swap, take or give in every row that gains by it, whichever gains most; return those rows."""
        falls, rises = panel.falls(), panel.rises()
        if isinstance(self.pattern, NofM):
            of = self.pattern.of
            rises.masked_fill_((panel.rows.place // of)[:, :, None] != (panel.columns // of)[:, None], torch.inf)
        least, slots = rises.min(1)
        win, which = (falls * (1 - WORTH) - least).max(1)
        slot = slots[panel.every, which]
        enter = leave = win > 0
        if isinstance(self.pattern, Unstructured):
            (fall, most), (rise, cheapest) = falls.max(1), panel.costs().min(1)
            if priced or self.price is None:
                level = min(max(1, len(fall) + self.excess // 2), 2 * len(fall))
                self.price = torch.cat([fall, rise]).kthvalue(level).values
            least_win = win.clamp(min=WORTH * float(self.price))
            take = (fall - self.price > least_win) & (panel.rows.free.sum(1) > 1)
            give = (self.price - rise > torch.maximum(least_win, fall - self.price)) & ~take
            which, slot = torch.where(take, most, which), torch.where(give, cheapest, slot)
            enter, leave = (enter | take) & ~give, (enter | give) & ~take
            self.excess += int(take.sum()) - int(give.sum())
        moved = enter | leave
        if moved.any():
            panel.bring_in(which, enter)
            panel.drop(slot, leave)
        return moved

    def _open(self, rows: Supports, few: int) -> Panel:
        """Open a panel of the inputs that promise most."""
        slope = rows.slope()
        promise = (slope.square() / self.room).masked_fill_(rows.kept, 0.0)
        columns = promise.topk(min(few, promise.shape[1]), 1).indices
        return Panel(rows, columns, slope.gather(1, columns))

    def _meet(self) -> None:
        """Give back what is above the budget where it costs least, or fill it up where it gains most."""
        while self.excess:
            panel = self._open(self.state, FEW if self.excess < 0 else 1)
            value, which = panel.falls().max(1) if self.excess < 0 else panel.costs().neg_().max(1)
            able = (panel.rows.free.any(1) if self.excess < 0 else value > -torch.inf).nonzero().flatten()
            number = min(abs(self.excess), max(1, len(able) // 4))
            on = torch.zeros(len(value), dtype=torch.bool, device=value.device)
            on[able[value[able].topk(number).indices]] = True
            if self.excess < 0:
                panel.bring_in(which, on)
            else:
                panel.drop(which, on)
            panel.close()
            self.excess += number if self.excess < 0 else -number
