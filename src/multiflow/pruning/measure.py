"""Statistics for a run: measured, taken over from an earlier calibration, or gone on with after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, parts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import plain
from multiflow.base.parallel import in_parallel
from multiflow.base.ranks import exchange, world
from multiflow.base.types import Layout
from multiflow.calibration import (
    STATISTICS,
    Checkpoint,
    Progress,
    Stats,
    announce,
    buffers_restored,
    check_fits,
    collect,
    free_memory,
    mean_gradient,
)
from multiflow.masks import hash_weight
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
    progress: Progress | None = None,
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
        return mean_gradient(model, weights, batches, adapter.loss, split=parts, idle=adapter.idle, **going)
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
    return identity(plan.adapter, plan.layout, plan.weights, **plan.record(0), **more)


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
