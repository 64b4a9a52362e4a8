"""Gradients of the pretraining loss: their mean over batches, or one row a batch.

The model runs in evaluation mode; only prunable weights get gradients, and each is taken away as soon as the backward
pass has made it, so that little more than the sums or rows themselves is held. A shared weight's gradient sums over
its users by itself. Training flags, ``requires_grad`` and ``.grad`` are afterwards as they were; buffers that the loss
moves (queues, momentum copies) are the caller's to restore, since they run on from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.calibration.collect import Progress, check_some, iterate, length, missing_keys_named, to_device
from multiflow.calibration.memory import free_memory
from multiflow.calibration.restore import differentiable
from multiflow.calibration.stats import Stats
from multiflow.errors import MultiflowError

Loss = Callable[[nn.Module, Any], Tensor]
GIB = 1 << 30
HEADROOM = 5  # float32 copies of the weights that CHITA's steps take beside its rows


def mean_gradient(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    loss: Loss,
    *,
    progress: Progress | None = None,
    start: Stats | None = None,
    after_batch: Callable[[Stats], None] | None = None,
) -> Stats:
    """Measure ``gradient`` of every weight: the mean over batches of the gradient of the loss.

    Args:
        model: runs in evaluation mode, and is left as it was, gradients and flags included.
        weights: layer name -> its weight; one that no loss depends on has the gradient zero.
        batches: moved to the weights' device one by one.
        loss: ``f(model, batch) -> scalar``.
        progress, start, after_batch: as in `collect`.

    Raises:
        MultiflowError: no batches, or a loss that is no finite scalar.
    """
    sums = {name: torch.zeros(w.shape, dtype=torch.float32, device=w.device) for name, w in weights.items()}
    first = start.batches if start else 0
    if start:
        for name, total in start.sums["gradient"].items():
            sums[name].copy_(total)

    def stats(batches: int) -> Stats:
        return Stats({"gradient": sums}, {"gradient": dict.fromkeys(weights, batches)}, batches)

    def after(done: int, batch: Any) -> None:
        if after_batch:
            after_batch(stats(done))

    add = lambda name, gradient: sums[name].add_(gradient)  # noqa: E731
    return stats(backward(model, weights, batches, loss, add, after, first=first, progress=progress))


def gradient_rows(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    loss: Loss,
    *,
    most: int,
    samples: Callable[[Any], int],
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Measure the gradient of each batch apart.

    Args:
        model, weights, batches, loss, progress: as in `mean_gradient`.
        most: number of batches at most.
        samples: ``f(batch)``: how many samples it holds.

    Returns:
        Layer name -> ``(rows, size)`` float32 on the weight's device, one row a batch; mean number of samples a batch.
    """
    rows = {name: torch.zeros(most, w.numel(), dtype=torch.float32, device=w.device) for name, w in weights.items()}
    seen: list[int] = []

    def take(name: str, gradient: Tensor) -> None:
        rows[name][len(seen)].copy_(gradient.flatten())

    backward(model, weights, batches, loss, take, lambda done, batch: seen.append(samples(batch)), progress=progress)
    return {name: of[: len(seen)] for name, of in rows.items()}, sum(seen) / len(seen)


def check_rows_fit(weights: Mapping[str, nn.Parameter], rows: int) -> int:
    """Return the bytes that gradient rows take; more than there are free is an error that says how many fit."""
    row = 4 * sum(weight.numel() for weight in weights.values())
    free = free_memory(next(iter(weights.values())).device)
    if free is not None and (rows + HEADROOM) * row > free:
        fit = free // row - HEADROOM
        advice = f"at most {fit} rows fit: set batches_per_step={fit}" if fit > 0 else "not even one row fits"
        raise MultiflowError(
            f"{rows} gradient rows of {row / GIB:.2f} GiB and {HEADROOM} more to work with need "
            f"{(rows + HEADROOM) * row / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free; {advice}"
        )
    return rows * row


def backward(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    loss: Loss,
    take: Callable[[str, Tensor], object],
    after: Callable[[int, Any], object],
    *,
    first: int = 0,
    progress: Progress | None = None,
) -> int:
    """Run forward and backward on batch after batch; return their number.

    Args:
        model, weights, batches, loss, progress: as in `mean_gradient`.
        take: called with layer name and gradient of each weight, while the backward pass goes on.
        after: called with number (from 1) and batch of each one that is done.
        first: number of batches to skip.
    """
    device, total, done = next(iter(weights.values())).device, length(batches), 0
    with differentiable(model, weights), ExitStack() as stack:
        for name, weight in weights.items():
            stack.callback(weight.register_post_accumulate_grad_hook(partial(_take, take, name)).remove)
        for done, batch in enumerate(iterate(batches), start=1):
            if done <= first:
                continue
            with missing_keys_named(batch, done):
                value = loss(model, to_device(batch, device))
            check_loss(value, done)
            value.backward()
            after(done, batch)
            if progress:
                progress("calibrate", done, total)
    check_some(done, first)
    return done


def _take(take: Callable[[str, Tensor], object], name: str, weight: Tensor) -> None:
    """Hand a weight's gradient over as soon as it is there, and free it."""
    take(name, weight.grad)  # type: ignore[arg-type]
    weight.grad = None


def check_loss(value: Any, batch: int) -> None:
    """Refuse a loss that is no finite scalar, naming the batch."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MultiflowError(f"the loss of batch {batch} is {given}; Adapter(loss=...) must return a scalar tensor")
    if not math.isfinite(value.item()):
        raise MultiflowError(
            f"the loss of batch {batch} is {value.item():g}; check that batch's data, or run the model in float32"
        )
