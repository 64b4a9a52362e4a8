"""The stages of every run: statistics, scores, budgets, masks.

Statistics are measured, taken over from an earlier calibration, or gone on with after a kill. What a pruner's function
returned is checked here too: what does not fit is an error that names pruner and layer.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, parts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import plain
from multiflow.base.order import smallest
from multiflow.base.parallel import exchange, in_parallel, world
from multiflow.base.steps import Step
from multiflow.base.types import Budget, Layout, NofM, Pattern, PerRow
from multiflow.calibration import (
    STATISTICS,
    Checkpoint,
    Doubling,
    Stats,
    announce,
    buffers_restored,
    check_fits,
    collect,
    free_memory,
    mean_gradient,
)
from multiflow.masks import hash_weight, keep_above, pack, select
from multiflow.methods import Pruner
from multiflow.methods.budgets import ALLOCATIONS, FITNESS, fit_budget, pattern_budget
from multiflow.pruning.fitness import BudgetFitness, LayerAt
from multiflow.pruning.plan import PruningPlan, Weights, check_loss, versions


def statistics(plan: PruningPlan) -> Stats | None:
    """Measure, or take over, the statistics that a request needs; None if it needs none."""
    names, batches = plan.request.statistics, plan.batches
    if not names:
        return None
    assert batches is not None
    if not isinstance(batches, Stats):
        going: dict[str, Any] = {"checkpoint": plan.checkpoint, "progress": plan.progress}
        return calibrate(plan.model, plan.layout, batches, plan.adapter, names, **going)
    for name in names:
        for layer in plan.layout:
            if layer not in batches.sums.get(name, {}):
                raise MultiflowError(f"the statistics given have no '{name}' of layer '{layer}'; calibrate this model")
            rows, inputs = plan.layout[layer].shape
            fitting = [(inputs,), (inputs, inputs), (rows, inputs)]
            if (given := tuple(batches.sums[name][layer].shape)) not in fitting:
                raise MultiflowError(
                    f"the statistics given are of another model: '{name}' of layer '{layer}' has shape {given}, "
                    f"the layer {(rows, inputs)}"
                )
    return batches


def forget(plan: PruningPlan) -> None:
    """Delete the checkpoint of a calibration, once there are masks: scoring may fail too."""
    if plan.checkpoint and plan.request.statistics and not isinstance(plan.batches, Stats):
        plan.checkpoint.of_process().delete()


def calibrate(
    model: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    adapter: Adapter,
    names: Sequence[str],
    *,
    checkpoint: Checkpoint | None = None,
    progress: Step | None = None,
) -> Stats:
    """Measure statistics, those of the inputs in one pass; the model's buffers are put back afterwards.

    The checkpoint stays, for whoever called this to delete once the statistics have served.
    """
    passes = in_passes([STATISTICS[name].name for name in names])
    if not passes:
        raise MultiflowError(f"statistics is empty; name at least one of: {', '.join(STATISTICS)}")
    if "gradient" in names:
        check_loss(adapter)
    if len(passes) > 1 and checkpoint is not None:
        raise MultiflowError(f"a checkpoint holds one pass, not {' and '.join(names)}; leave checkpoint out")
    if len(passes) > 1 and isinstance(batches, Iterator):
        raise MultiflowError(
            f"{' and '.join(names)} take {len(passes)} passes, but batches is a {type(batches).__name__}, which can be "
            "gone through once; pass a list or a DataLoader"
        )
    found, checkpoint = [], checkpoint and checkpoint.of_process()
    for together in passes:
        named = {"statistic": ", ".join(together)}
        settings = identity(adapter, layout, Weights(model, layout), **named) if checkpoint else {}
        going: dict[str, Any] = {"progress": progress}
        if checkpoint:
            start = checkpoint.load(settings)
            alike = len(set(exchange("start", start and start.batches))) == 1
            going["start"] = start if alike or not adapter.idle else None  # who talks must go on from the same batch
            going["after_batch"] = lambda stats, settings=settings: checkpoint.save(stats, settings)
        with untouched(model, adapter, *together):
            found.append(measure(model, layout, batches, adapter, *together, **going))
    return Stats.join(found)


def in_passes(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group statistics by the pass that measures them.

    >>> in_passes(["input_norm", "gradient", "input_moment"])
    [('input_norm', 'input_moment'), ('gradient',)]
    """
    gradient = tuple(name for name in names if name == "gradient")
    inputs = tuple(name for name in dict.fromkeys(names) if name != "gradient")
    return [together for together in (inputs, gradient[:1]) if together]


def untouched(model: nn.Module, adapter: Adapter, *names: str) -> AbstractContextManager[None]:
    """Put the model's buffers back afterwards, if measuring these statistics can change them at all."""
    moves = "gradient" in names or adapter.forward_moves_buffers
    return buffers_restored(model) if moves else nullcontext()


def measure(
    model: nn.Module, layout: Layout, batches: Iterable[Any], adapter: Adapter, *names: str, **going: Any
) -> Stats:
    """Take one pass: forward only for statistics of the inputs, forward and backward for the gradient alone."""
    if "gradient" in names:
        assert adapter.loss is not None
        weights = Weights(model, layout).parameters
        return mean_gradient(
            model, weights, batches, adapter.loss, layout=layout, split=parts, idle=adapter.idle, **going
        )
    return collect(
        model,
        layout,
        batches,
        adapter.forward,
        split=parts,
        stream=adapter.stream,
        token_masks=adapter.token_masks,
        names=names,
        **going,
    )


def identity(adapter: Adapter, layout: Layout, weights: Weights, /, **more: Any) -> Mapping[str, Any]:
    """Return the settings on which a checkpoint depends, a hash of the weights among them, as JSON gives them back."""
    hashes = list(in_parallel(lambda name: hash_weight(weights.value(name)), weights))
    settings = {
        **more,
        "adapter": adapter.name,
        "layers": len(layout),
        "weights": layout.size,
        "processes": world(),
        **versions(),
        "weights_hash": hashlib.sha256(repr((layout.layers, hashes)).encode()).hexdigest()[:16],
    }
    return json.loads(json.dumps(settings, default=plain))


def plan_identity(plan: PruningPlan, **more: Any) -> Mapping[str, Any]:
    """Return the settings on which a checkpoint of a pruning depends."""
    how = {name: value for name, value in plan.record(0).items() if name != "base_model"}  # its weights are hashed
    return identity(plan.adapter, plan.layout, plan.weights, **how, **more)


def check_gradient(who: str, weights: Mapping[str, Tensor]) -> None:
    check_held(f"{who} holds the gradients of {len(weights)} layers", weights, lambda weight: 4 * weight.numel())


def check_held(what: str, weights: Mapping[str, Tensor], size: Callable[[Tensor], int]) -> None:
    """Announce the bytes that are held for each weight on its device; more than are free there is an error."""
    sizes: dict[torch.device, int] = {}
    for weight in weights.values():
        device = torch.device("cpu") if weight.is_meta else weight.device
        sizes[device] = sizes.get(device, 0) + size(weight)
    for device, need in sizes.items():
        check_fits(f"{what}, which", need, free_memory(device), "leave layers dense with Adapter(exclude=...)")
    announce(what, sum(sizes.values()))


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
    progress: Step | None = None,
) -> list[Packed]:
    # a global ranking looks at all scores several times: then they are held, unless gradients as large are held already
    hold = plan.ranks_all and "gradient" not in plan.pruner.statistics
    ranked: Mapping[str, Tensor] = dict(scores) if hold else scores
    return make_masks(ranked, budgets(plan, ranked, sparsities, stats), plan.request.pattern, progress)


def budgets(
    plan: PruningPlan,
    scores: Mapping[str, Tensor],
    sparsities: Sequence[float],
    stats: Stats | None = None,
    layer_at: LayerAt | None = None,
) -> list[Budget]:
    pattern, allocation, layout = plan.request.pattern, plan.request.allocation, plan.layout
    if isinstance(pattern, PerRow | NofM) and allocation is ALLOCATIONS["uniform"]:
        return [pattern_budget(layout, s, pattern) for s in sparsities]
    given: dict[str, Any] = {"weights": plan.weights, "scores": scores}
    for name in allocation.statistics:
        assert stats is not None
        given[name] = {layer: stats.get_layer(name, layer) for layer in layout}
    if allocation.searches:
        prune_layer = layer_at or partial(_layer_at, plan, scores)
        known = {
            "allocation": allocation.name,
            "hyper": plan.request.hyper,
            "seed": plan.seed,
            "method": plan.pruner.name,
        }
        given[FITNESS] = fitness = BudgetFitness(
            plan, prune_layer, identity(plan.adapter, layout, plan.weights, **known)
        )
        found = allocation.budgets(layout, sparsities, **given)
        fitness.forget()
    else:
        found = allocation.budgets(layout, sparsities, **given)
    return [fit_budget(budget, layout) for budget in found] if isinstance(pattern, PerRow) else found


def _layer_at(plan: PruningPlan, scores: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    """Return the weight of a layer that drops the lowest of its scores."""
    mask = select(scores[name], [count], plan.request.pattern)[0]
    return plan.weights.value(name) * mask.to(plan.weights.value(name).device)


def make_masks(
    scores: Mapping[str, Tensor], budgets: Sequence[Budget], pattern: Pattern, progress: Step | None = None
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
