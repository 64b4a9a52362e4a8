"""Gradients of the pretraining loss: their mean over batches, or one row a batch.

The model runs in evaluation mode. Gradients of prunable weights are taken away as soon as the backward pass has made
them, and those of other parameters are let go, so that little more than the sums or rows themselves is held. A shared
weight's gradient sums over its users by itself. Training flags, ``requires_grad`` and ``.grad`` are afterwards as they
were; buffers that the loss moves (queues, momentum copies) are the caller's to restore, since they run on from step to
step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import exchange, sum_over_ranks_, world
from multiflow.base.steps import Step
from multiflow.base.types import Layout, WeightPart, by_parameter
from multiflow.calibration.batches import (
    Turn,
    check_some,
    is_empty,
    iterate,
    length,
    missing_keys_named,
    to_device,
    turns,
)
from multiflow.calibration.memory import GIB, check_fits, free_memory
from multiflow.calibration.state import differentiable, put_buffers
from multiflow.calibration.stats import Stats, check_start, sum_stats_
from multiflow.calibration.unreached import EARLY, check_groups_reached, check_loss_reaches

Loss = Callable[[nn.Module, Any], Tensor]
Split = Callable[[Any], list[Any]]
Idle = Callable[[nn.Module], object]
HEADROOM = 6  # float32 copies of the weights that a step of CHITA works in, beside its rows
CPU = torch.device("cpu")
LATER = 2  # and that later steps hold besides: the weights solved so far, and those that the model runs with


def mean_gradient(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss,
    *,
    layout: Layout | None = None,
    split: Split | None = None,
    idle: Idle | None = None,
    progress: Step | None = None,
    start: Stats | None = None,
    after_batch: Callable[[Stats], None] | None = None,
) -> Stats:
    """Measure ``gradient`` of every weight: the mean over batches of the gradient of the loss.

    Args:
        model: runs in evaluation mode, and is left as it was, gradients and flags included.
        weights: layer name -> its weight; one that no loss depends on has the gradient zero, and a warning names it.
        batches: moved to the weights' device one by one; several processes share them out.
        loss: ``f(model, batch) -> scalar``.
        layout: the layers, to say early that a whole group of them is not reached.
        split, idle: the parts of a batch, and ``f(model)``, called for each part that another process has more than
            this one: losses that talk to each other need it.
        progress, start, after_batch: as in `collect`.

    Raises:
        MultiflowError: no batches, a loss that is no finite scalar, or weights in float16.
    """
    sums = {name: torch.zeros(w.shape, dtype=torch.float32, device=w.device) for name, w in weights.items()}
    first = seen = start.batches if start else 0
    if start:
        check_start(start, {"gradient": {name: tuple(w.shape) for name, w in weights.items()}}, length(batches))
        seen = max(start.counts["gradient"].values())
        for name, total in start.sums["gradient"].items():
            sums[name].copy_(total)
        put_buffers(model, start.buffers)

    def stats(batches: int) -> Stats:
        return Stats({"gradient": sums}, {"gradient": dict.fromkeys(weights, seen)}, batches)

    reached: set[str] = set()

    def add(number: int, name: str, gradient: Tensor) -> None:
        reached.add(name)
        sums[name].add_(gradient)

    def after(turn: Turn) -> None:
        nonlocal seen
        seen += len(turn.own)
        if layout and world() == 1 and turn.done in (1, EARLY):
            check_groups_reached(layout, reached, turn.done)
        if after_batch:
            after_batch(replace(stats(turn.done), buffers=dict(model.named_buffers())))

    going: dict[str, Any] = {"split": split, "idle": idle, "first": first, "progress": progress}
    found = sum_stats_(stats(backward(model, weights, batches, loss, add, after, **going)))
    check_some(max(found.counts["gradient"].values()), first=0)
    if missed := [name for name in weights if name not in reached and not sums[name].any()]:
        if len(missed) == len(weights):
            raise MultiflowError(
                f"the loss reaches none of the {len(weights)} layers, first '{missed[0]}': Adapter(loss=...) does not "
                "use them, or something cuts the graph on the way (detach, no_grad, reentrant checkpoints whose inputs "
                "need no gradient)"
            )
        if layout:
            check_loss_reaches(layout, missed)
        warnings.warn(
            f"the loss never reaches {len(missed)} of {len(weights)} layers, first '{missed[0]}': their gradient is "
            "zero, and scores made of it let all their weights go; use them in Adapter(loss=...), or leave them dense "
            "with Adapter(exclude=...)",
            stacklevel=2,
        )
    return found


def gradient_rows(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss,
    *,
    most: int,
    samples: Callable[[Any], int],
    split: Split | None = None,
    idle: Idle | None = None,
    progress: Step | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Measure the gradient of each batch apart.

    Args:
        model, weights, batches, loss, split, idle, progress: as in `mean_gradient`.
        most: number of batches at most.
        samples: ``f(batch)``: how many samples it holds.

    Returns:
        Layer name -> ``(rows, size)`` float32 on the weight's device, one row a batch; mean number of samples a batch.
    """
    rows = {name: torch.zeros(most, w.numel(), dtype=torch.float32, device=w.device) for name, w in weights.items()}
    seen: dict[int, int] = {}  # number of a batch -> its samples

    def take(number: int, name: str, gradient: Tensor) -> None:
        rows[name][number - 1].copy_(gradient.flatten())

    def after(turn: Turn) -> None:
        seen.update({number: samples(to_device(batch, CPU)) for number, batch in turn.own})

    backward(model, weights, batches, loss, take, after, split=split, idle=idle, progress=progress)
    sum_over_ranks_(rows.values())  # each row is zero in all processes but one
    seen = {number: count for own in exchange("samples", seen) for number, count in own.items()}
    check_some(len(seen), first=0)
    there = [number - 1 for number in sorted(seen)]
    for name, of in rows.items():
        if not of.sum().isfinite() and not of.isfinite().all():
            bad = int((~of.isfinite().all(1)).nonzero()[0]) + 1
            raise MultiflowError(
                f"NaN or Inf in the gradient of layer '{name}' in batch {bad}; check that batch's data, "
                "or run the model in float32"
            )
    whole = len(there) == there[-1] + 1
    return {n: of[: len(there)] if whole else of[there] for n, of in rows.items()}, sum(seen.values()) / len(seen)


def check_rows_fit(weights: Mapping[str, Tensor], rows: int, steps: int = 1) -> tuple[str, int]:
    """Return in words what gradient rows and the work on them take, and the bytes.

    Raises:
        MultiflowError: more than there are free; the message says how many rows fit.
    """
    row = 4 * sum(weight.numel() for weight in weights.values())
    free = free_memory(next(iter(weights.values())).device)
    more = HEADROOM + (LATER if steps > 1 else 0)
    fit = (free or 0) // row - more
    what = f"{rows} gradient rows of {row / GIB:.2f} GiB and {more} more to work with"
    advice = f"at most {fit} rows fit: give {{batches_per_step={fit}}}" if fit > 0 else "not even one row fits"
    check_fits(what, (rows + more) * row, free, advice, field="batches_per_step")
    return f"{rows} gradient rows and {more} more to work with", (rows + more) * row


def check_precision(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights in float16, whose gradients would underflow without a word."""
    for name, weight in weights.items():
        if weight.dtype == torch.float16:
            raise MultiflowError(
                f"the weight of layer '{name}' is float16, in which small gradients become zero; "
                "run the model in bfloat16 or float32"
            )


def backward(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss,
    take: Callable[[int, str, Tensor], object],
    after: Callable[[Turn], object],
    *,
    split: Split | None = None,
    idle: Idle | None = None,
    first: int = 0,
    progress: Step | None = None,
) -> int:
    """Run forward and backward on batch after batch; return the number of those that all processes have done.

    Args:
        model, weights, batches, loss, split, idle, progress: as in `mean_gradient`.
        take: called with number of the batch (from 1), layer name and gradient of each weight, while the backward pass
            goes on.
        after: called after each round.
        first: number of batches to skip.
    """
    check_precision(weights)
    device, total, done, number = next(iter(weights.values())).device, length(batches), first, 0

    def hand_over(parts: Mapping[str, WeightPart | None], parameter: Tensor) -> None:
        for name, part in parts.items():
            take(number, name, part.view(parameter.grad) if part else parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    with differentiable(model, weights), ExitStack() as stack:
        for parameter, parts in by_parameter(weights):
            stack.callback(parameter.register_post_accumulate_grad_hook(partial(hand_over, parts)).remove)
        for turn in turns(iterate(batches), first, split):
            done = turn.done
            for number, batch in turn.own:
                loss_of(model, batch, number, loss, device).backward()
            keep_up(model, turn, idle)
            after(turn)
            if progress:
                progress("calibrate", done, total)
    return done


def loss_of(model: nn.Module, batch: Any, number: int, loss: Loss, device: torch.device) -> Tensor:
    """Compute the loss of a batch, refusing one that is no finite scalar, or has no gradient where one is wanted."""
    with missing_keys_named(batch, number):
        value = loss(model, to_device(batch, device))
    check_loss(value, number, batch)
    return value


def keep_up(model: nn.Module, turn: Turn, idle: Idle | None) -> None:
    """Take part in what the losses of the other processes tell each other."""
    for _ in range(turn.behind if idle else 0):
        idle(model)  # type: ignore[misc]


def check_loss(value: Any, batch: int, content: Any = None) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MultiflowError(f"the loss of batch {batch} is {given}; Adapter(loss=...) must return a scalar tensor")
    if not math.isfinite(value.item()):
        if is_empty(content):
            raise MultiflowError(
                f"batch {batch} is empty, so that its loss is {value.item():g}; leave such batches out"
            )
        raise MultiflowError(
            f"the loss of batch {batch} is {value.item():g}; check that batch's data, or run the model in float32"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise MultiflowError(
            f"the loss of batch {batch} has no gradient; compute it outside of torch.no_grad and torch.inference_mode, "
            "without detach, and with checkpoint(..., use_reentrant=False) where gradient checkpointing is used"
        )
