"""Running a model and leaving it as it was: what is changed on the way is put back, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.types import by_parameter

Observer = Callable[[str, Tensor], None]


@contextmanager
def watching(modules: Mapping[str, nn.Module], observe: Observer) -> Iterator[None]:
    """Call ``observe(path, input)`` before every forward of the modules; the hooks are gone after the block."""
    with ExitStack() as stack:
        for path, module in modules.items():
            hook = module.register_forward_pre_hook(_hook(path, observe), with_kwargs=True)
            stack.callback(hook.remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back as it was afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _hook(path: str, observe: Observer) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        if isinstance(given, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(given):
            raise MultiflowError(
                f"layer '{path}' runs inside a transform of torch.func, such as vmap, where nothing can be measured; "
                "give an Adapter(forward=...) that runs the model on whole batches"
            )
        observe(path, given)

    return hook


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Give every buffer its values back afterwards: a loss may move queues and momentum copies, or put others there."""
    places = [(module._buffers, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
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
def weights_replaced(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``weight.data = other`` inside the block be undone: the memory of the weights is never written to."""
    before = [(parameter, parameter.data) for parameter, _ in by_parameter(weights)]
    try:
        yield
    finally:
        for weight, data in before:
            weight.data = data


@contextmanager
def differentiable(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let these weights have gradients, in evaluation mode; put flags and gradients back afterwards.

    Other parameters keep their flags, for a graph may need them: what is recomputed in the backward pass (reentrant
    checkpoints) gets there only if its inputs have gradients. Theirs are let go as they arrive.
    """
    if torch.is_inference_mode_enabled():
        raise MultiflowError("there are no gradients inside torch.inference_mode(); call this outside of it")
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter, _ in by_parameter(weights)}
    stack = ExitStack()
    try:
        for parameter, flag, _ in before:
            parameter.grad = None
            if id(parameter) in wanted:
                parameter.requires_grad_(True)
            elif flag:
                stack.callback(parameter.register_post_accumulate_grad_hook(_let_go).remove)
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        stack.close()
        for parameter, flag, gradient in before:
            parameter.grad = None
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None
