"""Running a fitter: one layer after the other, the mask and the new weights of what it keeps.

The memory of a fitter is that of its statistics, of the new weights of all sparsities, and of one layer to work with.
All of it is known from the layout: it is announced before the first batch, and more than there is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Layer, NofM, Pattern, PerRow
from multiflow.calibration import MOMENT, Stats, announce, check_fits, free_memory, sums_size
from multiflow.masks import pack, select
from multiflow.methods import Pruner
from multiflow.pruning import stages
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stages import Outcome, Packed, budgets, check_fitted, check_pair, check_scores

ON_WEIGHT = 30  # bytes for each weight of a layer while it is fitted: seven float32 tensors and two masks
ON_MOMENT = 8  # bytes for each number of its moment meanwhile: the float32 moment, and the damped one
ON_INVERSE = 24  # bytes for each number of its moment before, while it is inverted: two matrices in float64 more


def check_memory(plan: PruningPlan) -> None:
    """Announce the bytes that a fitter takes beside its statistics: new weights, and one layer's work.

    Raises:
        MultiflowError: more than are free, with the statistics that are still to be measured.
    """
    parameters = list(plan.weights.parameters.values())
    device, number = plan.weights.device(next(iter(plan.layout))), len(plan.sparsities)
    kept = number * sum(weight.nbytes for weight in parameters)
    work = max(work_size(layer, plan.pruner.needs) for layer in plan.layout.layers)
    what = f"new weights of {number} sparsities" if number > 1 else "new weights"
    what += " and one layer to work with"
    measured = () if isinstance(plan.batches, Stats) else plan.request.statistics
    need = work + sums_size(plan.layout, measured) + (kept if device.type == "cpu" else 0)
    fewer = "ask for fewer sparsities at a time, or " if number > 1 else ""
    advice = f"{fewer}leave wide layers dense with Adapter(exclude=...)"
    check_fits(", ".join((*measured, what)), need, free_memory(device), advice)
    announce(f"{plan.pruner.name} holds {what}", kept + work)


def work_size(layer: Layer, needs: Collection[str]) -> int:
    """Return the bytes that fitting a layer takes, in float32, beside its weight and the sums of the statistics."""
    if MOMENT not in needs:
        return ON_WEIGHT * layer.size
    square = layer.shape[1] ** 2
    return max(ON_INVERSE * square, ON_MOMENT * square + ON_WEIGHT * layer.size)


def run(plan: PruningPlan) -> Outcome:
    """Give for each sparsity the masks and the new weights, layer by layer, from statistics measured once."""
    begun = time.perf_counter()
    check_memory(plan)
    stats = stages.statistics(plan)
    packed: list[Packed] = []
    changed: list[dict[str, Tensor]] = []
    fit: Callable[[str, int], tuple[np.ndarray, Tensor]] = partial(fit_layer, plan, stats)
    if plan.request.allocation.searches:
        fit = cache(fit)  # what a search has tried is not done again

    def layer_at(name: str, count: int) -> Tensor:
        return fit(name, count)[1]

    found = budgets(plan, {}, plan.sparsities, stats, layer_at)
    for sparsity, budget in zip(plan.sparsities, found, strict=True):
        progress = plan.progress_of(sparsity)
        masks: Packed = {}
        weights: dict[str, Tensor] = {}
        for name in plan.layout:  # one at a time, not in threads: the work on a layer takes several times its size
            masks[name], weights[name] = fit(name, budget[name])
            if progress:
                progress("fit", len(masks), len(plan.layout))
        packed.append(masks)
        changed.append(weights)
    stages.forget(plan)
    batches = [stats.batches if stats else 0] * len(packed)
    return Outcome(packed, batches, {"steps": time.perf_counter() - begun}, changed, stats=stats)


def fit_layer(plan: PruningPlan, stats: Stats | None, name: str, count: int) -> tuple[np.ndarray, Tensor]:
    """Return the packed mask and the new weight of a layer that drops ``count``."""
    weight, parameter = plan.weights[name], plan.weights.parameters[name]
    version = parameter._version
    choose = Chooser(plan.layout[name], count, plan.request.pattern, plan.pruner)
    given = {need: stats.get_layer(need, name).to(weight) for need in plan.pruner.needs} if stats else {}
    found = plan.pruner.function(weight, choose, **given, **plan.request.own_hyper)
    if parameter._version != version:
        raise MultiflowError(
            f"pruner '{plan.pruner.name}' changed the weight of layer '{name}' in place; let it return a new "
            "tensor, and load the model anew"
        )
    mask, fitted = check_pair(plan.pruner, found)
    fitted = check_fitted(plan.pruner, name, mask, fitted, plan.layout[name].shape, count)
    return pack(mask), fitted.to("cpu", parameter.dtype)


@dataclass(frozen=True)
class Chooser:
    """A layer's budget under a pattern, as fitters are given it (`multiflow.methods.declare.Choose`)."""

    of: Layer  # the layer
    count: int  # how many of its weights go in the end
    pattern: Pattern  # which weights may go together
    pruner: Pruner  # who chooses, for errors

    @property
    def layer(self) -> str:
        return self.of.name

    def __call__(self, scores: Tensor, done: float = 1.0) -> Tensor:
        """Drop the lowest scores of the layer, as `choose_part` says."""
        checked = check_scores(self.pruner, self.layer, scores, self.of.shape, some_gone=True)
        return choose_part(checked, done, count=self.count, pattern=self.pattern)

    def within(self, scores: Tensor, count: int) -> Tensor:
        """Drop ``count`` of the scores of some columns, whole groups of an N:M pattern."""
        checked = check_scores(self.pruner, self.layer, scores, tuple(scores.shape), some_gone=True)
        return choose_part(checked, count=count, pattern=self.pattern)


def choose_part(scores: Tensor, done: float = 1.0, *, count: int, pattern: Pattern) -> Tensor:
    """Drop the lowest scores of a layer, when a share ``done`` of its steps is taken: each drops the same share.

    Args:
        scores: ``(out, in)``.
        done: in (0, 1]; at 1 exactly ``count`` weights go.
        count: the layer's budget.
        pattern: which weights may go together; on the way N:M keeps more of its M, and every row drops equally many.

    Returns:
        The mask on the device of the scores, True = kept.
    """
    rows, columns = scores.shape
    if done < 1 and isinstance(pattern, NofM):
        keep = pattern.of - _part(pattern.of - pattern.keep, pattern.of, done)
        pattern, count = NofM(keep, pattern.of) if keep < pattern.of else PerRow(), 0
    elif done < 1:
        by_row = isinstance(pattern, PerRow)
        count = _part(count // rows, columns, done) * rows if by_row else _part(count, rows * columns, done)
    return select(scores, [count], pattern)[0].to(scores.device)


def _part(count: int, size: int, done: float) -> int:
    """Of ``size`` weights of which ``count`` go in the end, how many are gone by now."""
    return round(size * (1 - (1 - count / size) ** done))
