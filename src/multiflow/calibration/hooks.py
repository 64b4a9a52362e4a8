"""Watching the inputs of modules, for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

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
        observe(path, args[0] if args else kwargs["input"])

    return hook
