"""From scores to masks: how many weights each layer drops, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from multiflow.base.order import smallest
from multiflow.base.parallel import in_parallel
from multiflow.base.types import Budget, NofM, Pattern, PerRow
from multiflow.calibration import Progress
from multiflow.masks import keep_above, pack, select
from multiflow.methods.budgets import find_allocation, fit_budget, pattern_budget
from multiflow.pruning.job import Job

Packed = dict[str, np.ndarray]


class Pruned(NamedTuple):
    """What a method that works anew for every sparsity gives at one of them.

    Args:
        packed: layer name -> its mask.
        weights: layer name -> its new weight, of methods that change weights.
        batches: how many it has taken; one that came again counts again.
    """

    packed: Packed
    weights: Mapping[str, Tensor] | None
    batches: int


def choose(
    job: Job, scores: Mapping[str, Tensor], sparsities: Sequence[float], progress: Progress | None = None
) -> list[Packed]:
    """Choose the weights that each layer keeps, for each sparsity, and pack them."""
    # a global ranking looks at all scores several times: then they are held, unless gradients as large are held already
    hold = job.allocation == "global" and "gradient" not in job.pruner.statistics
    ranked: Mapping[str, Tensor] = dict(scores) if hold else scores
    return make_masks(ranked, budgets(job, ranked, sparsities), job.pattern, progress)


def budgets(job: Job, scores: Mapping[str, Tensor], sparsities: Sequence[float]) -> list[Budget]:
    """Decide how many weights each layer drops, for each sparsity."""
    if isinstance(job.pattern, PerRow | NofM) and job.allocation == "uniform":
        return [pattern_budget(job.layout, s, job.pattern) for s in sparsities]
    found = find_allocation(job.allocation)(job.layout, sparsities, job.weights, scores)
    return [fit_budget(budget, job.layout) for budget in found] if isinstance(job.pattern, PerRow) else found


def make_masks(
    scores: Mapping[str, Tensor], budgets: Sequence[Budget], pattern: Pattern, progress: Progress | None = None
) -> list[Packed]:
    """Select and pack the masks of all budgets layer by layer."""

    def make(name: str) -> list[np.ndarray]:
        return [pack(mask) for mask in select(scores[name], [budget[name] for budget in budgets], pattern)]

    packed: list[Packed] = [{} for _ in budgets]
    for done, (name, masks) in enumerate(zip(scores, in_parallel(make, scores), strict=True), start=1):
        for of, mask in zip(packed, masks, strict=True):
            of[name] = mask
        if progress:
            progress("select", done, len(scores))
    return packed


def choose_masks(job: Job, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Choose the weights that each layer keeps at one sparsity, unpacked: a learner does so in every step."""
    budget = budgets(job, scores, [sparsity])[0]
    masks = in_parallel(lambda name: select(scores[name], [budget[name]], job.pattern)[0], scores)
    return dict(zip(scores, masks, strict=True))


def select_lowest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Drop exactly ``count`` of the lowest scores of all tensors together; bool CPU masks, True = kept."""
    tensors, sizes = [partial(scores.__getitem__, name) for name in scores], [x.numel() for x in scores.values()]
    cut = smallest(tensors, sizes, [count])[0]
    return {name: keep_above(scores[name], cut.value, drops) for name, drops in zip(scores, cut.drops, strict=True)}
