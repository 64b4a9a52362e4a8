"""Running a fitter: one layer after the other, the mask and the new weights of what it keeps.

The memory of a fitter is that of its statistics, of the new weights of all sparsities, and of one layer to work with.
All of it is known from the layout: it is announced before the first batch, and more than there is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Layer, NofM, Pattern, PerRow
from multiflow.calibration import MOMENT, Stats, announce, check_fits, free_memory, sums_size
from multiflow.masks import pack, select
from multiflow.pruning.choose import Packed, Pruned, budgets
from multiflow.pruning.job import Job
from multiflow.pruning.result import check_scores
from multiflow.pruning.returned import check_fitted, check_pair

ON_WEIGHT = 30  # bytes for each weight of a layer while it is fitted: seven float32 tensors and two masks
ON_MOMENT = 8  # bytes for each number of its moment meanwhile: the float32 moment, and the damped one
ON_INVERSE = 24  # bytes for each number of its moment before, while it is inverted: two matrices in float64 more


def check_memory(job: Job) -> None:
    """Announce the bytes that a fitter takes beside its statistics: new weights, and one layer's work.

    Raises:
        MultiflowError: more than are free, with the statistics that are still to be measured.
    """
    parameters = list(job.weights.parameters.values())
    device, number = parameters[0].device, len(job.sparsities)
    kept = number * sum(weight.nbytes for weight in parameters)
    work = max(work_size(layer, job.pruner.needs) for layer in job.layout.layers)
    what = f"new weights of {number} sparsities" if number > 1 else "new weights"
    what += " and one layer to work with"
    measured = () if isinstance(job.batches, Stats) else job.pruner.statistics
    need = work + sums_size(job.layout, measured) + (kept if device.type == "cpu" else 0)
    fewer = "ask for fewer sparsities at a time, or " if number > 1 else ""
    advice = f"{fewer}leave wide layers dense with Adapter(exclude=...)"
    check_fits(", ".join((*measured, what)), need, free_memory(device), advice)
    announce(f"{job.pruner.name} holds {what}", kept + work)


def work_size(layer: Layer, needs: Collection[str]) -> int:
    """Return the bytes that fitting a layer takes, in float32, beside its weight and the sums of the statistics."""
    if MOMENT not in needs:
        return ON_WEIGHT * layer.size
    square = layer.shape[1] ** 2
    return max(ON_INVERSE * square, ON_MOMENT * square + ON_WEIGHT * layer.size)


def fit_layers(job: Job, stats: Stats | None) -> Iterator[Pruned]:
    """Yield for each sparsity the packed masks and the new weights."""
    for sparsity, budget in zip(job.sparsities, budgets(job, {}, job.sparsities), strict=True):
        progress = job.progress_of(sparsity)
        packed: Packed = {}
        weights: dict[str, Tensor] = {}
        for name in job.layout:  # one at a time, not in threads: the work on a layer takes several times its size
            packed[name], weights[name] = _fit(job, stats, name, budget[name])
            if progress:
                progress("fit", len(packed), len(job.layout))
        yield Pruned(packed, weights, stats.batches if stats else 0)


def _fit(job: Job, stats: Stats | None, name: str, count: int) -> tuple[np.ndarray, Tensor]:
    """Return the packed mask and the new weight of a layer that drops ``count``."""
    weight, parameter = job.weights[name], job.weights.parameters[name]
    version = parameter._version

    def choose(scores: Any, done: float = 1.0) -> Tensor:
        checked = check_scores(job.pruner, name, scores, job.layout[name].shape, some_gone=True)
        return choose_part(checked, done, count=count, pattern=job.pattern)

    given = {need: stats.get_layer(need, name).to(weight) for need in job.pruner.needs} if stats else {}
    found = job.pruner.function(weight, choose, **given, **job.own_hyper)
    if parameter._version != version:
        raise MultiflowError(
            f"pruner '{job.pruner.name}' changed the weight of layer '{name}' in place; let it return a new "
            "tensor, and load the model anew"
        )
    mask, fitted = check_pair(job.pruner, found)
    fitted = check_fitted(job.pruner, name, mask, fitted, job.layout[name].shape, count)
    return pack(mask), fitted.to("cpu", parameter.dtype)


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
