"""Leaving a model as it was: what a method changes on the way is put back, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.calibration.hooks import evaluating


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Give every buffer its values back afterwards: a loss may move queues and momentum copies, or put others there."""
    places = [(module._buffers, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffers, name, held in places:
            buffers[name] = held
        for buffer, value in before:
            _give(buffer, value)


def put_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give buffers the values of a checkpoint, by name."""
    for name, value in values.items():
        buffer = model.get_buffer(name)
        _give(buffer, value.to(buffer.device))


@torch.no_grad()
def _give(buffer: Tensor, value: Tensor) -> None:
    """Write values to a buffer that has others: the memory of one that was expanded cannot be written to."""
    if not torch.equal(buffer, value):
        buffer.copy_(value)


@contextmanager
def weights_replaced(weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let ``weight.data = other`` inside the block be undone: the memory of the weights is never written to."""
    before = [(weight, weight.data) for weight in weights.values()]
    try:
        yield
    finally:
        for weight, data in before:
            weight.data = data


@contextmanager
def differentiable(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let only these weights have gradients, in evaluation mode; put flags and gradients back afterwards."""
    if torch.is_inference_mode_enabled():
        raise MultiflowError("there are no gradients inside torch.inference_mode(); call this outside of it")
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
