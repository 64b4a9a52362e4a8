"""`keep_sparse`: zeros that stay zero while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.errors import MultiflowError
from multiflow.masks.masks import Masks


@contextmanager
def keep_sparse(model: nn.Module, masks: Masks, optimizer: Any = None) -> Iterator[None]:
    """Keep dropped weights at zero inside the ``with`` block, whatever loop and optimizer train the model.

    Gradients of dropped weights are zeroed as they arrive, so that momentum, clipping and gradient norms never see
    them; after every optimizer step the weights themselves are set to zero, against what an optimizer may hold from
    before. The hooks are gone when the block ends; memory is one bool a weight.

    Args:
        model: the model that trains; the masks are applied to it first.
        masks: which weights are kept.
        optimizer: a ``torch.optim.Optimizer`` or a wrapper with an ``optimizer`` attribute (Accelerate). Without one
            the weights are zeroed again at the end of the block and the zeroed gradients hold them there, which
            suffices for an optimizer that is new or whose state is zero for dropped weights.
    """
    inner = None if optimizer is None else _unwrap(optimizer)
    masks.apply_(model)
    found = masks.find_weights(model)
    weights = [(weight, _Dropped(~masks[name])) for name in masks for weight in found[name]]

    @torch.no_grad()
    def zero_weights(*_: Any) -> None:
        for weight, dropped in weights:
            weight.masked_fill_(dropped.on(weight.device), 0.0)

    with ExitStack() as stack:
        for weight, dropped in weights:
            if weight.requires_grad:
                stack.callback(weight.register_hook(dropped.zero_gradient).remove)
        if inner is not None:
            stack.callback(inner.register_step_post_hook(zero_weights).remove)
        stack.callback(zero_weights)
        yield


class _Dropped:
    """Which entries of a weight are dropped, on the device that the weight moves to (Trainer and Accelerate do)."""

    def __init__(self, dropped: Tensor) -> None:
        self._dropped = dropped

    def on(self, device: torch.device) -> Tensor:
        if self._dropped.device != device:
            self._dropped = self._dropped.to(device)
        return self._dropped

    def zero_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.on(gradient.device), 0.0)


def _unwrap(optimizer: Any) -> torch.optim.Optimizer:
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, torch.optim.Optimizer):
        raise MultiflowError(
            f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer, or a wrapper that holds one "
            "as its .optimizer; leave it out where there is none yet"
        )
    return inner
