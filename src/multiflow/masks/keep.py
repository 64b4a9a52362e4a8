"""`keep_sparse`: zeros that stay zero while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.errors import MultiflowError
from multiflow.masks.masks import Masks

COMPILED = "_orig_mod"
"""Where torch.compile holds the model that it wraps."""


@contextmanager
def keep_sparse(
    model: nn.Module,
    masks: Masks,
    optimizer: Any = None,
    copies: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Callable[[], None]]:
    """Keep dropped weights at zero inside the ``with`` block, whatever loop and optimizer train the model.

    Gradients of dropped weights are zeroed as they arrive, so that momentum, clipping and gradient norms never see
    them; after every optimizer step the weights themselves are set to zero, against what an optimizer may hold from
    before. The hooks are gone when the block ends; memory is one bool a weight.

    Args:
        model: the model that trains, also one that DistributedDataParallel or ``torch.compile`` wraps, or that
            ``fully_shard`` has split; the masks are applied to it first.
        masks: which weights are kept.
        optimizer: a ``torch.optim.Optimizer`` or a wrapper with an ``optimizer`` attribute (Accelerate). Without one
            the weights are zeroed again at the end of the block and the zeroed gradients hold them there, which
            suffices for an optimizer that is new or whose state is zero for dropped weights.
        copies: layer of the masks -> paths of modules whose weight is a buffer that follows it, such as momentum copies
            (see `buffer_places`); they are zeroed at first too, and checked.

    Yields:
        A function that raises a MultiflowError, with the layer and the count, if a dropped weight is not 0.0.

    >>> with mf.keep_sparse(model, masks, optimizer) as check:      # doctest: +SKIP
    ...     for batch in batches:
    ...         model(**batch).loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...     check()
    """
    inner = None if optimizer is None else _unwrap(optimizer)
    model = _bare(model)
    found = masks.find_weights(model)
    if not any(_is_split(weight) for weights in found.values() for weight in weights):
        masks.apply_(model)
    dropped = {name: _Dropped(~masks[name]) for name in masks}
    weights: list[tuple[str, Tensor, _Dropped]] = [
        (name, weight, dropped[name]) for name in masks for weight in found[name]
    ]
    for name, paths in (copies or {}).items():
        weights += [(path, model.get_submodule(path).weight, dropped[name]) for path in paths]  # type: ignore[misc]

    @torch.no_grad()
    def zero_weights(*_: Any) -> None:
        for _name, weight, drop in weights:
            if isinstance(weight, nn.Parameter):
                weight.masked_fill_(drop.like(weight), 0.0)

    @torch.no_grad()
    def check() -> None:
        for name, weight, drop in weights:
            revived = int(((weight != 0) | weight.signbit()).logical_and_(drop.like(weight)).sum())
            if revived:
                raise MultiflowError(
                    f"{revived} of the {drop.count:,} dropped weights of layer '{name}' are no longer 0.0; something "
                    "writes to them beside the optimizer that keep_sparse was given"
                )

    with torch.no_grad():
        for _, weight, drop in weights:
            weight.masked_fill_(drop.like(weight), 0.0)
    with ExitStack() as stack:
        for _, weight, drop in weights:
            if not weight.requires_grad:
                continue
            if _is_split(weight):  # its gradient comes from fully_shard, past the hooks of autograd
                hook = weight.register_post_accumulate_grad_hook(drop.zero_arrived)
            else:
                hook = weight.register_hook(drop.zero_gradient)
            stack.callback(hook.remove)
        if inner is not None:
            stack.callback(inner.register_step_post_hook(zero_weights).remove)
        stack.callback(zero_weights)
        yield check


def buffer_places(model: nn.Module, masks: Masks, places: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the places of a task model's weights that are buffers, such as momentum copies: layer -> their paths.

    Args:
        model: the task model.
        masks: moved to it.
        places: as ``mf.build_task_model`` gives them.
    """
    layers = {path: layer.name for layer in masks.layout.layers for path in layer.paths}
    found: dict[str, tuple[str, ...]] = {}
    for paths in places.values():
        buffers = tuple(path for path in paths if not isinstance(model.get_submodule(path).weight, nn.Parameter))
        for name in dict.fromkeys(layers[path] for path in paths if path in layers):
            if buffers:
                found[name] = buffers
    return found


class _Dropped:
    """Which entries of a weight are dropped, on its device and split as it is (Trainer moves it, FSDP splits it)."""

    def __init__(self, dropped: Tensor) -> None:
        self._dropped = dropped
        self.count = int(dropped.sum())

    def like(self, weight: Tensor) -> Tensor:
        if _is_split(weight) and not _is_split(self._dropped):
            from torch.distributed.tensor import distribute_tensor

            whole, mesh, placements = self._dropped.to(weight.device), weight.device_mesh, weight.placements  # type: ignore[attr-defined]
            self._dropped = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        if self._dropped.device != weight.device:
            self._dropped = self._dropped.to(weight.device)
        return self._dropped

    def zero_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.like(gradient), 0.0)

    def zero_arrived(self, weight: Tensor) -> None:
        if weight.grad is not None:
            weight.grad.masked_fill_(self.like(weight), 0.0)


def _is_split(weight: Tensor) -> bool:
    """Whether a weight is a DTensor (importing their module takes too long to ask by class)."""
    return hasattr(weight, "placements")


def _bare(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of DistributedDataParallel and torch.compile."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or COMPILED in model._modules:
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._modules[COMPILED]  # type: ignore[assignment]
    return model


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
