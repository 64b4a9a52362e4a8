"""Leaving a model as it was: what a method changes on the way is put back, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from multiflow.calibration.hooks import evaluating


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Give every buffer its values back afterwards: a loss may move queues and momentum copies."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def put_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give buffers the values of a checkpoint, by name."""
    with torch.no_grad():
        for name, value in values.items():
            model.get_buffer(name).copy_(value)


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
