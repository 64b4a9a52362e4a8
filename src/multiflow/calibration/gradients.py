"""Gradients of the pretraining loss: one float32 sum a weight.

The model runs in evaluation mode; only prunable weights get gradients, and each is taken away as soon as the backward
pass has made it, so that little more than the sums themselves is held. A shared weight's gradient sums over its users
by itself. Training flags, ``requires_grad``, ``.grad`` and buffers are afterwards as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.calibration.collect import Progress, check_some, iterate, length, missing_keys_named, to_device
from multiflow.calibration.hooks import evaluating
from multiflow.calibration.stats import Stats
from multiflow.errors import MultiflowError

Loss = Callable[[nn.Module, Any], Tensor]


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
    device = next(iter(weights.values())).device
    sums = {name: torch.zeros(w.shape, dtype=torch.float32, device=w.device) for name, w in weights.items()}
    first = start.batches if start else 0
    if start:
        for name, total in start.sums["gradient"].items():
            sums[name].copy_(total)

    def stats(batches: int) -> Stats:
        return Stats({"gradient": sums}, {"gradient": dict.fromkeys(weights, batches)}, batches)

    done, total_batches = 0, length(batches)
    with _differentiable(model, weights), ExitStack() as stack:
        for name, weight in weights.items():
            stack.callback(weight.register_post_accumulate_grad_hook(partial(_take, sums[name])).remove)
        for done, batch in enumerate(iterate(batches), start=1):
            if done <= first:
                continue
            with missing_keys_named(batch, done):
                value = loss(model, to_device(batch, device))
            _check_loss(value, done)
            value.backward()
            if after_batch:
                after_batch(stats(done))
            if progress:
                progress("calibrate", done, total_batches)
    check_some(done, first)
    return stats(done)


def _take(total: Tensor, weight: Tensor) -> None:
    """Add a weight's gradient to its sum as soon as it is there, and free it."""
    total.add_(weight.grad)  # type: ignore[arg-type]
    weight.grad = None


def _check_loss(value: Any, batch: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise MultiflowError(f"the loss of batch {batch} is {given}; Adapter(loss=...) must return a scalar tensor")
    if not math.isfinite(value.item()):
        raise MultiflowError(
            f"the loss of batch {batch} is {value.item():g}; check that batch's data, or run the model in float32"
        )


@contextmanager
def _differentiable(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let only these weights have gradients, and put flags, gradients and buffers back afterwards."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]  # a loss may move queues and copies
    wanted = {id(weight) for weight in weights.values()}
    try:
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in wanted)
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for parameter, flag, gradient in before:
            parameter.grad = None
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
