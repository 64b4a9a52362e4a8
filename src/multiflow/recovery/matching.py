"""Block-wise reconstruction: each sub-block in turn is matched to the dense one's outputs.

For every part f of the model, in the order in which they are run, over its kept weights, biases and norms

    min  sum || f(x~) - f_dense(x) ||^2 / sum || f_dense(x) ||^2

where x are the inputs of the dense model and x~ those of the pruned one, whose earlier parts are recovered by then: a
part makes up for errors of those before it. EBFT (arXiv 2402.12419) matches whole blocks on the inputs of the pruned
model, 3BASiL-TM and "A Free Lunch in LLM Compression" (arXiv 2510.14444) windows down to the sub-blocks taken here.
Padding does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, TokenMask, lay_mask
from multiflow.base.errors import MultiflowError
from multiflow.recovery.parts import End, Part, first_tensor


@dataclass
class Call:
    """One call of a block in a forward.

    Args:
        block: its path.
        args: what it was given, in place.
        kwargs: the same by keyword.
        targets: what the dense model has at the ends inside it.
        output: what the dense block gives.
        reached: modules with layers that the dense model has run in it.
        masks: stream -> which tokens are real.
    """

    block: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    targets: dict[End, Tensor] = field(default_factory=dict)
    output: Tensor | None = None
    reached: set[str] = field(default_factory=set)
    masks: Mapping[str, TokenMask] = field(default_factory=dict)


CACHE = "Cache"
"""Base class of what transformers remembers of earlier calls in: a block that runs again would go on from there."""


class _Stop(Exception):
    """Ends a forward that has given what was wanted."""


@contextmanager
def inputs_taken(
    model: nn.Module, blocks: Sequence[str], calls: list[Call], expected: int | None = None
) -> Iterator[None]:
    """Note what the blocks are given, inside the ``with``, which ends after the expected number of calls."""

    def hook(path: str) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(path, held(args), held(kwargs)))
            if len(calls) == expected:
                raise _Stop

        return take

    with ExitStack() as stack:
        for path in blocks:
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(hook(path), with_kwargs=True).remove)
        with suppress(_Stop):
            yield


@contextmanager
def targets_taken(
    model: nn.Module, parts: Sequence[Part], layers: Sequence[str], calls: list[Call], expected: int | None = None
) -> Iterator[None]:
    """Note what the blocks of some parts have at their ends, inside the ``with``, which ends as that of the inputs."""
    inside: list[Call] = []

    def enter(path: str) -> Any:
        def begin(module: nn.Module, args: Any) -> None:
            calls.append(Call(path))
            inside.append(calls[-1])

        return begin

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop().output = held(first_tensor(output))
        if len(calls) == expected and not inside:
            raise _Stop

    def see(end: End) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            if inside and inside[-1].block == end.block:
                inside[-1].targets.setdefault(end, held(first_tensor([*args, *kwargs.values()])))

        return note

    def reach(path: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            if inside:
                inside[-1].reached.add(path)

        return note

    with ExitStack() as stack:
        ends = dict.fromkeys(end for part in parts for end in part.ends)
        for path in dict.fromkeys(end.block for end in ends):
            block = model.get_submodule(path)
            stack.callback(block.register_forward_pre_hook(enter(path), prepend=True).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        for end in ends:
            if end.is_input:
                stack.callback(
                    model.get_submodule(end.path).register_forward_pre_hook(see(end), with_kwargs=True).remove
                )
        for path in layers:
            stack.callback(model.get_submodule(path).register_forward_pre_hook(reach(path)).remove)
        with suppress(_Stop):
            yield


def held(value: Any) -> Any:
    """Return what a module is given, to be used again later: tensors copied, without their graph, and no caches."""
    if any(base.__name__ == CACHE for base in type(value).__mro__):
        return None
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(held, value))
    if isinstance(value, list | tuple):
        return type(value)(map(held, value))
    if type(value) is dict:
        return {key: held(item) for key, item in value.items()}
    return value


def run_to(model: nn.Module, call: Call, end: End | None) -> Tensor | None:
    """Run a block on what it was given, up to an end; what it gives where that is not reached."""
    found: list[Tensor | None] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(first_tensor([*args, *kwargs.values()]))
        raise _Stop

    with ExitStack() as stack:
        if end is not None and end.is_input:
            module = model.get_submodule(end.path)
            stack.callback(module.register_forward_pre_hook(take, with_kwargs=True).remove)
        try:
            return first_tensor(model.get_submodule(call.block)(*call.args, **call.kwargs))
        except _Stop:
            return found[0]


def match_loss(model: nn.Module, part: Part, calls: Sequence[Call], adapter: Adapter) -> Tensor | None:
    """Return the relative squared error of a part over the calls of a batch; None where the batch does not reach it."""
    error: Any = 0.0
    size: Any = 0.0
    ends = {end.block: end for end in part.ends}
    for call in calls:
        if call.block not in ends or not call.reached.intersection(part.modules):
            continue
        end = ends[call.block]
        target = call.targets.get(end, call.output)
        found = run_to(model, call, end if end in call.targets else None)
        if found is None or target is None or found.shape != target.shape:
            continue
        weight = real_tokens(adapter, end.layer, call.masks, target)
        apart, whole = (found.float() - target.float()).square(), target.float().square()
        if weight is not None:
            apart, whole = apart * weight, whole * weight
        error, size = error + apart.sum(), size + whole.sum()
    return error / size.clamp(min=torch.finfo(torch.float32).tiny) if isinstance(size, Tensor) else None


def real_tokens(adapter: Adapter, layer: str, masks: Mapping[str, TokenMask], value: Tensor) -> Tensor | None:
    """Return which tokens of ``(batch, tokens, width)`` count, ``(batch, tokens, 1)``; None = all."""
    stream = adapter.stream(layer)
    try:
        mask = lay_mask(masks.get(stream), layer, value) if stream else None
    except MultiflowError:  # of the layer's input, and this is what comes of it
        mask = None
    if mask is None or value.dim() < 2:
        return None
    rows = max(1, len(mask))  # a batch may be empty
    if mask.dim() == 2 and value.dim() == 3 and mask.shape[1] == value.shape[1] and len(value) % rows == 0:
        return mask.repeat(len(value) // rows, 1)[..., None].to(value.device, torch.float32)
    if mask.shape == value.shape[:-1]:
        return mask[..., None].to(value.device, torch.float32)
    return None
