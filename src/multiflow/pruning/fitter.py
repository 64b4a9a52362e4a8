"""Running a fitter layer by layer, several at a time on several cores: masks and new weights of what it keeps.

The memory of a fitter is that of its statistics, of the new weights of all sparsities, and of the layers to work with.
All of it is known from the layout: it is announced before the first batch, with the time that fitting will take
(`multiflow.pruning.estimate`), and more than there is refused. Where memory is scarce fewer layers go side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import in_parallel, thread_count
from multiflow.base.types import Budget, Layer, NofM, Pattern, PerRow
from multiflow.calibration import MOMENT, Stats, announce, announce_text, check_fits, free_memory, sums_size
from multiflow.masks import pack, select
from multiflow.methods import PRUNERS, Pruner
from multiflow.pruning import stages
from multiflow.pruning.estimate import Estimate, counted, duration, measure_rates
from multiflow.pruning.plan import PruningPlan, make_plan, request
from multiflow.pruning.stages import Outcome, Packed, budgets, check_fitted, check_pair, check_scores

ON_WEIGHT = 30  # bytes for each weight of a layer while it is fitted: seven float32 tensors and two masks
ON_MOMENT = 8  # bytes for each number of its moment meanwhile: the float32 moment, and the damped one
MENTIONED = 1e11  # operations of a run whose time is announced: about a second of one core
ON_INVERSE = 24  # bytes for each number of its moment before, while it is inverted: two matrices in float64 more


@dataclass(frozen=True)
class Needs:
    """The bytes of a fitter on its device, and how many layers it works on at a time."""

    kept: int  # new weights of all sparsities
    sums: int  # statistics that are still to be measured
    work: tuple[int, ...]  # of the largest layers, as many as are worked on at a time

    @property
    def threads(self) -> int:
        return len(self.work)


def needs_of(plan: PruningPlan, free: int | None) -> Needs:
    """Count the bytes of a fitter; work on as many layers at a time as ``free`` bytes allow, at least one."""
    kept = len(plan.sparsities) * sum(weight.nbytes for weight in plan.weights.parameters.values())
    measured = () if isinstance(plan.batches, Stats) else plan.request.statistics
    sums = sums_size(plan.layout, measured)
    sizes = sorted((layer_work(plan, layer) for layer in plan.layout.layers), reverse=True)[: thread_count()]
    there = None if free is None else free - sums - (kept if _device(plan).type == "cpu" else 0)
    while there is not None and len(sizes) > 1 and sum(sizes) > there:
        sizes.pop()
    return Needs(kept, sums, tuple(sizes))


def check_memory(plan: PruningPlan) -> int:
    """Announce what a fitter takes beside its statistics; return how many layers it works on at a time.

    Raises:
        MultiflowError: more bytes than are free, with the statistics that are still to be measured.
    """
    device, number = _device(plan), len(plan.sparsities)
    free = free_memory(device)
    needs = needs_of(plan, free)
    what = f"new weights of {number} sparsities" if number > 1 else "new weights"
    what += " and one layer to work with" if needs.threads == 1 else f" and {needs.threads} layers to work with"
    measured = () if isinstance(plan.batches, Stats) else plan.request.statistics
    need = sum(needs.work) + needs.sums + (needs.kept if device.type == "cpu" else 0)
    fewer = "ask for fewer sparsities at a time, or " if number > 1 else ""
    advice = f"{fewer}leave wide layers dense with Adapter(exclude=...)"
    check_fits(", ".join((*measured, what)), need, free, advice)
    announce(f"{plan.pruner.name} holds {what}", needs.kept + sum(needs.work))
    return needs.threads


def announce_time(plan: PruningPlan, threads: int) -> None:
    """Say how long fitting all layers will take, if the method's work has been counted and is worth a word."""
    cost = counted(plan)
    if cost is None or cost.products < MENTIONED:
        return
    seconds = fitting_seconds(plan, threads)
    if seconds is not None:
        announce_text(f"{plan.pruner.name} takes", f"{duration(seconds)}, besides running the model")


def estimate(
    model: nn.Module,
    method: str | Callable[..., Any],
    sparsity: float | Sequence[float] | None = None,
    *,
    adapter: Adapter | None = None,
    pattern: str | Pattern | None = None,
    allocation: str | Callable[..., Mapping[str, int]] | None = None,
    **hyper: Any,
) -> Estimate:
    """Say what an update method will take before it starts: seconds on this machine, and memory beside the model.

    Its work is counted layer by layer, and the machine timed for a fraction of a second; running the model on the
    calibration data comes on top. `prune` logs the same. Nothing is pruned, and no data are needed.

    Args:
        model: as for `prune`, and all else too.
        method: one that changes weights layer by layer, such as ``exchange``, ``alps``, ``sparsegpt`` or ``lobs``.
        sparsity: one or several.
        adapter: how to run the model.
        pattern: which weights may go together.
        allocation: how many weights each layer drops.
        **hyper: hyper-parameters of the method.

    Raises:
        MultiflowError: bad input as for `prune`, or a method of another kind.

    Example:
        >>> print(mf.estimate(model, "exchange", 0.75))                                          # doctest: +SKIP
        about 9 min for 168 layers on 2 threads, and 4.12 GB beside the model
    """
    asked = request(method, sparsity, pattern=pattern, allocation=allocation, hyper=hyper)
    if asked.pruner.kind != "fitter":
        fitters = ", ".join(name for name, of in PRUNERS.items() if of.kind == "fitter")
        raise MultiflowError(
            f"estimate knows methods that change weights layer by layer ({fitters}), and '{asked.pruner.name}' is a "
            f"{asked.pruner.kind}"
        )
    return estimate_of(make_plan(asked, model, [], adapter=adapter))


def estimate_of(plan: PruningPlan) -> Estimate:
    needs = needs_of(plan, free_memory(_device(plan)))
    memory = needs.kept + needs.sums + sum(needs.work)
    seconds = fitting_seconds(plan, needs.threads)
    return Estimate(seconds, memory, needs.threads, len(plan.layout), len(plan.sparsities))


def fitting_seconds(plan: PruningPlan, threads: int) -> float | None:
    """Return how long fitting takes; None on a GPU, for a budget that is searched, and where nobody has counted it."""
    cost = None if plan.request.allocation.searches or _device(plan).type != "cpu" else counted(plan)
    if cost is None:
        return None
    return measure_rates(threads).seconds(cost)


def layer_work(plan: PruningPlan, layer: Layer) -> int:
    """Return the bytes that fitting a layer takes at the sparsity that takes most, beside its weight and statistics."""
    rows, columns = layer.shape
    costs = [plan.pruner.cost_of(rows, columns, 1 - s, plan.request.own_hyper) for s in plan.sparsities]
    return work_size(layer, plan.pruner.needs) + max((int(cost.held) for cost in costs if cost), default=0)


def _device(plan: PruningPlan) -> torch.device:
    return plan.weights.device(next(iter(plan.layout)))


def work_size(layer: Layer, needs: Collection[str]) -> int:
    """Return the bytes that fitting a layer takes, in float32, beside its weight and the sums of the statistics."""
    if MOMENT not in needs:
        return ON_WEIGHT * layer.size
    square = layer.shape[1] ** 2
    return max(ON_INVERSE * square, ON_MOMENT * square + ON_WEIGHT * layer.size)


def run(plan: PruningPlan) -> Outcome:
    """Give for each sparsity the masks and the new weights, layer by layer, from statistics measured once."""
    begun = time.perf_counter()
    threads = check_memory(plan)
    announce_time(plan, threads)
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
        fitted = in_parallel(partial(_fit_named, fit, budget), plan.layout, most=threads, share=True)
        for name, found_of in zip(plan.layout, fitted, strict=True):
            masks[name], weights[name] = found_of
            if progress:
                progress("fit", len(masks), len(plan.layout))
        packed.append(masks)
        changed.append(weights)
    stages.forget(plan)
    batches = [stats.batches if stats else 0] * len(packed)
    return Outcome(packed, batches, {"steps": time.perf_counter() - begun}, changed, stats=stats)


def _fit_named(
    fit: Callable[[str, int], tuple[np.ndarray, Tensor]], budget: Budget, name: str
) -> tuple[np.ndarray, Tensor]:
    return fit(name, budget[name])


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
