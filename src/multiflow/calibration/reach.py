"""Which layers a model's output depends on, seen in forwards of a few samples.

Every operation is watched as it is dispatched, and it is noted from which tensors each new one was computed, whether or
not a gradient could go that way: a token that an ``argmax`` has chosen depends on what it was chosen by. Tensors are
told apart by their storage, so that views and what is written in place need no rule of their own. Numbers that Python
reads out of a tensor count as output. A gate that is zero hides nothing, for values play no part.

What is computed outside of torch's dispatcher (a kernel of its own) would break the trail. So a layer that seems to be
for nothing is tried out: it is used by nobody only if the output stays the same, bit for bit, when what the layer gives
is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from multiflow.base.types import Layout, is_hooked
from multiflow.calibration.state import buffers_restored, evaluating

ENOUGH = 4
"""Parts to run where all layers that ran are used, and others, such as some experts, did not run."""
INNER = re.compile(r"hidden_states?|attentions|past_key_values|pooler_output|_outputs?$")
"""Names of what comes with a model's output: states on the way, and the whole outputs of its parts."""
LAST = ("last_hidden_state", "pooler_output")
"""What a model without a head gives: its last state, and what it makes of that."""
LIKE = re.compile(r"\w+_like$|new_\w+$")
"""Operations that take no more than the form of a tensor."""
READS = ("_local_scalar_dense", "item", "is_nonzero")
"""Operations that give numbers to Python."""


def unused_layers(
    model: nn.Module, layout: Layout, parts: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> tuple[str, ...]:
    """Return the layers that run although nothing of the output depends on them, such as those behind the last state
    that a language model takes from its vision tower.

    Args:
        model: runs in evaluation mode without gradients, and is left as it was.
        layout: the layers to look at.
        parts: what to run the model on, gone through only as far as there are layers that none has used yet; a layer
            that none of them reaches is not among those returned.
        forward: ``f(model, part)``, which returns the model's output. Of a mapping, states on the way
            (``hidden_states``, ``vision_outputs``) count only if there is nothing else.

    Returns:
        Names of layers, in the order of the layout; none where the forward fails.
    """
    found: dict[str, bool] = {}  # module -> whether the output depends on it, of those that ran
    held: dict[str, list[str]] = {}  # module -> its layers
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in layout.layers:
        for path in map(layer.module, layer.paths):
            around = path if is_hooked(path, modules) else path.rpartition(".")[0]  # fused attention calls no part
            held.setdefault(around, []).append(layer.name)
    try:
        with buffers_restored(model), evaluating(model), torch.no_grad():
            for number, part in enumerate(parts, start=1):
                asked = {path: modules[path] for path in held if not found.get(path)}
                for path, alive in _reached(model, asked, part, forward).items():
                    found[path] = alive or found.get(path, False)
                if all(found.values()) and (len(found) == len(held) or number >= ENOUGH):
                    break
    except Exception:  # whatever it is, the run proper meets it too and says it as it should be said
        return ()
    used = {name for path, alive in found.items() if alive for name in held[path]}
    ran = {name for path in found for name in held[path]}
    return tuple(name for name in layout if name in ran - used)


def _reached(
    model: nn.Module, modules: Mapping[str, nn.Module], part: Any, forward: Callable[[nn.Module, Any], Any]
) -> dict[str, bool]:
    """Return of each module that runs whether the output depends on what it gives."""
    flow = _Flow()
    with _seeded(), _hooked(modules, flow.mark), flow:
        out = _answer(forward(model, part))
    alive = flow.upstream(out)
    found = {path: any(alive[at] for at in marks) for path, marks in flow.marks.items()}
    idle = [path for path, used in found.items() if not used]
    if idle:
        with _seeded(), _hooked({path: modules[path] for path in idle}, lambda path, given: _other(given)):
            again = _answer(forward(model, part))
        if not _equal(out, again):  # something went by unseen
            return dict.fromkeys(found, True)
    return found


class _Flow(TorchDispatchMode):
    """Notes of every tensor which others it was computed from; of one that is gone nothing but that is held."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[str, list[int]] = {}  # module -> what it gave
        self._sources: list[tuple[int, ...]] = [()]  # the first stands for all that comes from no module
        self._at: dict[int, int] = {}  # storage -> what it holds by now
        self._known: dict[int, StorageWeakRef] = {}  # so that no storage takes the address of one that is gone
        self._read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        taken = {_storage(tensor): tensor for tensor in tensors_in((args, kwargs))}
        name = func.__name__.split(".")[0]
        sources = () if LIKE.match(name) else tuple(sorted({self._at.get(one, 0) for one in taken} - {0}))
        if name in READS:
            self._read.update(sources)
        if func._schema.is_mutable:
            for spec, value in _named(func._schema, args, kwargs):
                if spec.alias_info is not None and spec.alias_info.is_write:
                    for tensor in tensors_in(value):
                        self._put(tensor, self._new(sources))
        for tensor in tensors_in(out):
            if _storage(tensor) not in taken:  # else a view, or what was written to
                self._put(tensor, self._new(sources))
        return out

    def mark(self, path: str, given: Any) -> None:
        """Note what a module gives."""
        for tensor in tensors_in(given):
            before = self._at.get(_storage(tensor), 0)
            self._sources.append((before,) if before else ())
            self._put(tensor, len(self._sources) - 1)
            self.marks.setdefault(path, []).append(len(self._sources) - 1)

    def upstream(self, out: Iterable[Tensor]) -> bytearray:
        """Return, of all that was noted, whether the output depends on it."""
        alive = bytearray(len(self._sources))
        for at in [*self._read, *(self._at.get(_storage(tensor), 0) for tensor in out)]:
            alive[at] = True
        for at in range(len(alive) - 1, 0, -1):
            if alive[at]:
                for source in self._sources[at]:
                    alive[source] = True
        return alive

    def _put(self, tensor: Tensor, at: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = StorageWeakRef(storage)
        self._at[storage._cdata] = at

    def _new(self, sources: tuple[int, ...]) -> int:
        if len(sources) < 2:  # the same as what it comes from
            return sources[0] if sources else 0
        self._sources.append(sources)
        return len(self._sources) - 1


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _named(schema: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for number, spec in enumerate(schema.arguments):
        if number < len(args):
            yield spec, args[number]
        elif spec.name in kwargs:
            yield spec, kwargs[spec.name]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a model takes or gives, however they are nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def _answer(out: Any) -> list[Tensor]:
    """Return what a model is run for."""
    if isinstance(out, Mapping):
        last = LAST if LAST[0] in out else ()
        out = {name: value for name, value in out.items() if name in last or not INNER.search(str(name))} or out
    return list(tensors_in(out))


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], see: Callable[[str, Any], Any]) -> Iterator[None]:
    """Show what modules give; what ``see`` returns is given in its place."""
    with ExitStack() as stack:
        for path, module in modules.items():
            hook = module.register_forward_hook(lambda _module, _args, given, path=path: see(path, given))
            stack.callback(hook.remove)
        yield


def _other(value: Any) -> Any:
    """Return other numbers than those of a module."""
    if isinstance(value, Tensor):
        return 1 - value if value.is_floating_point() else value
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(map(_other, value))
    return value


@contextmanager
def _seeded() -> Iterator[None]:
    """Let what is random be the same each time, and go on afterwards as if nothing had been."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(one, other, strict=True)
    )
