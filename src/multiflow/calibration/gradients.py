"""Gradients of the calibration loss: one float32 tensor a weight, or one row a batch.

The model runs in evaluation mode; only prunable weights get gradients, and each is taken away as soon as the backward
pass has made it, so that no more than the sums themselves are held. A shared weight's gradient sums over its users by
itself. Training flags, ``requires_grad`` and ``.grad`` are afterwards as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.calibration.collect import Progress, to_device
from multiflow.calibration.hooks import evaluating
from multiflow.calibration.stats import Stats
from multiflow.errors import MultiflowError

Loss = Callable[[nn.Module, Any], Tensor]
Take = Callable[[int, str, Tensor], None]
"""``f(batch, layer, gradient)``, called once a batch and layer; the gradient is only lent."""


def mean_gradient(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    loss: Loss,
    progress: Progress | None = None,
) -> tuple[Stats, int]:
    """Measure ``gradient``, the mean over batches of the gradient of the loss; return it with the number of batches."""
    sums = {name: torch.zeros(w.shape, dtype=torch.float32, device=w.device) for name, w in weights.items()}
    done = each_gradient(model, weights, batches, loss, lambda _, name, grad: sums[name].add_(grad), progress)
    return Stats({"gradient": sums}, {"gradient": dict.fromkeys(weights, done)}), done


def each_gradient(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    loss: Loss,
    take: Take,
    progress: Progress | None = None,
) -> int:
    """Run forward and backward on every batch and hand over each weight's gradient; return the number of batches.

    Raises:
        MultiflowError: no batches, or a loss that is no finite scalar.
    """
    device = next(iter(weights.values())).device
    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
    done = 0
    with _differentiable(model, weights), ExitStack() as stack:
        for name, weight in weights.items():
            handle = weight.register_post_accumulate_grad_hook(partial(_hand_over, lambda: done, name, take))
            stack.callback(handle.remove)
        for batch in batches:
            value = loss(model, to_device(batch, device))
            _check_loss(value, done + 1)
            value.backward()
            done += 1
            if progress:
                progress("calibrate", done, total)
    if done == 0:
        raise MultiflowError(
            "there are no calibration batches: the data are empty, or a generator that was used up before; "
            "pass a list or another iterable that can be iterated again"
        )
    return done


def _hand_over(batch: Callable[[], int], name: str, take: Take, weight: Tensor) -> None:
    assert weight.grad is not None
    take(batch(), name, weight.grad)
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
    """Let only these weights have gradients, and put flags and gradients back afterwards."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
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
