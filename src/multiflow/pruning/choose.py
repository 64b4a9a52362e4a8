"""From scores to masks: how many weights each layer drops, and which.

What a pruner's function returned is checked here too: what does not fit is an error that names pruner and layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.order import smallest
from multiflow.base.parallel import in_parallel
from multiflow.base.types import Budget, NofM, Pattern, PerRow
from multiflow.calibration import Doubling, Progress, Stats
from multiflow.masks import keep_above, pack, select
from multiflow.methods import Pruner
from multiflow.methods.budgets import ALLOCATIONS, fit_budget, pattern_budget
from multiflow.pruning.plan import PruningPlan

Packed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What a runner gives: masks, and what came with them.

    Args:
        packed: for each sparsity, layer name -> its mask.
        batches: for each sparsity, how many it has taken; one that came again counts again.
        timings: seconds of each phase.
        weights: for each sparsity, layer name -> its new weight, on the CPU, of methods that change weights.
        scores, stats, curve: see `Result`.
    """

    packed: Sequence[Packed]
    batches: Sequence[int]
    timings: Mapping[str, float]
    weights: Sequence[Mapping[str, Tensor]] | None = None
    scores: Mapping[str, Tensor] | None = None
    stats: Stats | None = None
    curve: tuple[Doubling, ...] | None = None


class Scores(Mapping[str, Tensor]):
    """Layer name -> the scores of its weights ``(out, in)``, computed when looked up.

    Nothing is stored: the scores of a large model would take as much memory as the model. They come from the weights as
    they were; once those were written to in place (masks applied, an optimizer's step), looking a score up is an error.
    What is done through ``weight.data`` is the exception: torch does not count it, and the scores are those of the
    weights as they are by then.
    """

    def __init__(self, plan: PruningPlan, stats: Stats | None) -> None:
        self._pruner, self._weights, self._stats = plan.pruner, plan.weights, stats
        self._hyper, self._seed = plan.request.own_hyper, plan.seed
        self._versions = {name: weight._version for name, weight in plan.weights.parameters.items()}

    def __repr__(self) -> str:
        return f"Scores({self._pruner.name}, {len(self)} layers, computed when looked up)"

    def __getitem__(self, name: str) -> Tensor:
        if self._weights.parameters[name]._version != self._versions[name]:
            raise MultiflowError(
                f"the weight of layer '{name}' has changed since it was pruned, so its scores cannot be computed any "
                "more; read result.scores before applying masks or training"
            )
        weight = self._weights[name]
        scores = self._pruner.function(weight, **self._provided(name, weight), **self._hyper)
        if self._weights.parameters[name]._version != self._versions[name]:
            raise MultiflowError(
                f"pruner '{self._pruner.name}' changed the weight of layer '{name}' in place; compute its scores from "
                "a copy (weight.abs(), not weight.abs_()), and load the model anew"
            )
        return check_scores(self._pruner, name, scores, tuple(weight.shape))

    def _provided(self, name: str, weight: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for need in self._pruner.needs:
            if need == "generator":  # the generator looks at 32 bits of its seed, no more
                given[need] = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
            else:
                assert self._stats is not None
                given[need] = self._stats.get_layer(need, name).to(weight)
        return given

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def choose(
    plan: PruningPlan,
    scores: Mapping[str, Tensor],
    sparsities: Sequence[float],
    stats: Stats | None = None,
    progress: Progress | None = None,
) -> list[Packed]:
    # a global ranking looks at all scores several times: then they are held, unless gradients as large are held already
    hold = plan.ranks_all and "gradient" not in plan.pruner.statistics
    ranked: Mapping[str, Tensor] = dict(scores) if hold else scores
    return make_masks(ranked, budgets(plan, ranked, sparsities, stats), plan.request.pattern, progress)


def budgets(
    plan: PruningPlan, scores: Mapping[str, Tensor], sparsities: Sequence[float], stats: Stats | None = None
) -> list[Budget]:
    pattern, allocation, layout = plan.request.pattern, plan.request.allocation, plan.layout
    if isinstance(pattern, PerRow | NofM) and allocation is ALLOCATIONS["uniform"]:
        return [pattern_budget(layout, s, pattern) for s in sparsities]
    given: dict[str, Any] = {"weights": plan.weights, "scores": scores}
    for name in allocation.statistics:
        assert stats is not None
        given[name] = {layer: stats.get_layer(name, layer) for layer in layout}
    found = allocation.budgets(layout, sparsities, **given)
    return [fit_budget(budget, layout) for budget in found] if isinstance(pattern, PerRow) else found


def make_masks(
    scores: Mapping[str, Tensor], budgets: Sequence[Budget], pattern: Pattern, progress: Progress | None = None
) -> list[Packed]:

    def make(name: str) -> list[np.ndarray]:
        return [pack(mask) for mask in select(scores[name], [budget[name] for budget in budgets], pattern)]

    packed: list[Packed] = [{} for _ in budgets]
    for done, (name, masks) in enumerate(zip(scores, in_parallel(make, scores), strict=True), start=1):
        for of, mask in zip(packed, masks, strict=True):
            of[name] = mask
        if progress:
            progress("select", done, len(scores))
    return packed


def choose_masks(plan: PruningPlan, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Choose the weights that each layer keeps at one sparsity, unpacked: a learner does so in every step."""
    budget = budgets(plan, scores, [sparsity])[0]
    masks = in_parallel(lambda name: select(scores[name], [budget[name]], plan.request.pattern)[0], scores)
    return dict(zip(scores, masks, strict=True))


def select_lowest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Drop exactly ``count`` of the lowest scores of all tensors together; bool CPU masks, True = kept."""
    tensors, sizes = [partial(scores.__getitem__, name) for name in scores], [x.numel() for x in scores.values()]
    cut = smallest(tensors, sizes, [count])[0]
    return {name: keep_above(scores[name], cut.value, drops) for name, drops in zip(scores, cut.drops, strict=True)}


def check_pair(pruner: Pruner, given: Any) -> tuple[Any, Any]:
    """Return the two things that a fitter or a solver gives, masks and new weights."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        number = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a {type(given).__name__}{number}; a {pruner.kind} returns two things, "
            "masks and new weights"
        )
    return given[0], given[1]


def check_named(pruner: Pruner, what: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a {type(given).__name__}; expected a dict from layer name to its {what}"
        )
    return given


def check_fitted(
    pruner: Pruner, layer: str, mask: Any, weight: Any, shape: tuple[int, ...], count: int | None = None
) -> Tensor:
    """Return the new weight of a layer with plus zero where the mask drops.

    Args:
        pruner, layer: whose they are.
        mask: bool, True = kept.
        weight: finite.
        shape: ``(out, in)`` of both.
        count: how many weights the mask is to drop; None where only all layers together have a number.
    """
    for what, value in (("a mask", mask), ("weights", weight)):
        if not isinstance(value, Tensor) or value.shape != shape:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MultiflowError(f"pruner '{pruner.name}' gave {what} {given} for layer '{layer}'; expected {shape}")
    if mask.dtype != torch.bool:
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a mask of {mask.dtype} for layer '{layer}'; expected torch.bool, True = kept"
        )
    if count is not None and (dropped := int((~mask).sum())) != count:
        raise MultiflowError(f"pruner '{pruner.name}' drops {dropped} weights of layer '{layer}'; expected {count}")
    if not weight.isfinite().all():
        raise MultiflowError(
            f"pruner '{pruner.name}' gave NaN or Inf weights for layer '{layer}'; check its weights and data"
        )
    return weight.detach().masked_fill(~mask.to(weight.device), 0.0)


def check_scores(pruner: Pruner, layer: str, scores: Any, shape: tuple[int, ...], *, some_gone: bool = False) -> Tensor:
    """Return the scores of a layer in float32 or better; those that cannot be ranked are an error that names it.

    With ``some_gone`` a score may be -Inf: that of a weight that is gone already.
    """
    if not isinstance(scores, Tensor) or scores.shape != shape:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise MultiflowError(f"pruner '{pruner.name}' gave scores {given} for layer '{layer}'; expected {shape}")
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    if some_gone:
        fine = not scores.numel() or bool(scores.max() < torch.inf)  # false for NaN as well
    else:
        fine = bool(scores.sum().isfinite() or scores.isfinite().all())
    if not fine:
        raise MultiflowError(
            f"pruner '{pruner.name}' gave NaN or Inf scores for layer '{layer}'; check its weights and data"
        )
    return scores
