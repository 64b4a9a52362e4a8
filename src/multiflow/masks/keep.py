"""`keep_sparse`: zeros that stay zero while a model trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from multiflow.base.errors import MultiflowError
from multiflow.base.guards import check_module, uncompiled
from multiflow.base.types import Layer, WeightPlace
from multiflow.base.wrapped import layer_places
from multiflow.masks.masks import Masks
from multiflow.masks.merging import mask_factors

WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the type that shows its bits."""
CHUNK = 1 << 18
"""Weights ANDed at once: their mask, widened on the way to the size of their bits, stays in the processor's cache."""
BY_THEMSELVES = {
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Rprop")
}
"""Optimizers that move each weight by its own gradient and state alone: a zero with neither of them stays."""
UNDER_ROOTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""States of which such optimizers take square roots, to divide by them."""


@contextmanager
def keep_sparse(
    model: nn.Module,
    masks: Masks,
    optimizer: Any = None,
    copies: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Callable[[], None]]:
    """Keep dropped weights at zero inside the ``with`` block, whatever loop and optimizer train the model.

    Gradients of dropped weights are zeroed as they arrive, so that momentum, clipping and gradient norms never see
    them, and once more before a step, for those that were written by hand. Against what an optimizer may hold from
    before, the weights are set to zero after its step too: with SGD, the Adam family and others of `BY_THEMSELVES`
    after the first step and after one that follows its ``load_state_dict``, together with the state; with any other
    optimizer, which may mix weights, after every step. Whatever writes to weights in between (by hand, an optimizer
    that steps inside the backward pass, ``load_state_dict``) is noticed at the next gradient or step, by the weight's
    version and memory; one layer after the other is zeroed with every step against writes that leave no such trace.
    Meanwhile the squares that the Adam family divides by are 1 where weights are dropped: roots of exact zeros take a
    CPU eight times as long, and nothing comes of them, for what is divided is zero. Whoever asks for the optimizer's
    state, or looks at it after the block, finds zeros.
    The place in the model counts, not the tensor: a parameter that takes it is kept sparse at once. The hooks are gone
    when the block ends; memory is one byte a weight.

    Args:
        model: the model that trains, also one that DistributedDataParallel or ``torch.compile`` wraps, or that
            ``fully_shard`` has split; the masks are applied to it first. Of one that peft has wrapped the layers go by
            their names from before; what LoRA adds to them is computed and merged without filling zeros, and its
            factors stay dense.
        masks: which weights are kept.
        optimizer: a ``torch.optim.Optimizer`` or a wrapper with an ``optimizer`` attribute (Accelerate). Without one
            the weights are zeroed again at the end of the block and the zeroed gradients hold them there, which
            suffices for an optimizer that is new or whose state is zero for dropped weights, and ``backward()``.
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
    check_module(model)
    model = _bare(model)
    found = masks.find_places(model)
    if not any(_is_split(place.whole) for places in found.values() for place in places):
        masks.apply_(model)
    there = layer_places(model)
    places = _places(masks, found)
    kept = {id(place.module): place.kept for place in places}
    for name, paths in (copies or {}).items():  # buffers stay whole where weights are split
        first = found[name][0]
        of = _Kept(masks[name]) if _is_split(first.whole) else kept[id(first.module)]
        places += [_Place(path, module, of) for path in paths for module in there[path]]
    ours: set[int] = set()  # of hooks, by which a tensor that has one is known
    settled = False  # whether the optimizer holds nothing for dropped weights
    filled = False  # whether the squares that it divides by are 1 there
    turn = 0
    gone_is_known = False  # whether somebody knows that a layer is gone

    @torch.no_grad()
    def zero_weights(*_: Any) -> None:
        for place, weight in _distinct(places):
            if isinstance(weight, nn.Parameter):
                place.kept.zero_(weight)
        note()

    def note() -> None:
        for place in places:
            place.note()

    @torch.no_grad()
    def look_after(*_: Any) -> None:
        for place, weight in _distinct(places):
            hook(place, weight)
            place.zero_what_changed(weight)

    @torch.no_grad()
    def look_around(place: _Place, weight: Tensor) -> None:
        for other, there in _distinct(places):
            if hook(other, there):
                other.zero_what_changed(there)
            else:  # its gradient is zeroed as it comes
                other.zero_if_changed(there)
        place.zero_what_changed(weight)

    @torch.no_grad()
    def after_step(*_: Any) -> None:
        nonlocal settled, filled, turn
        if not settled:
            zero_weights()
            if inner is not None and type(inner) in BY_THEMSELVES:
                zero_states()
                settled = True
        if not settled:
            return
        turn += 1
        there = _distinct(places)
        place, weight = there[turn % len(there)]
        for some, its in [(place, weight)] if filled else there:  # anew from time to time, for they fade
            fill(some, its)
        filled = True
        if _is_split(weight) or not weight.is_cpu:  # to ask would be to wait
            place.kept.zero_(weight)
        elif place.kept.revived(weight):
            zero_weights()
        note()

    @torch.no_grad()
    def zero_states(*_: Any) -> None:
        nonlocal filled
        filled = False
        if inner is not None and type(inner) in BY_THEMSELVES:
            for place, weight in _distinct(places):
                for state in inner.state.get(weight, {}).values():
                    if isinstance(state, Tensor) and state.shape == weight.shape:
                        place.kept.zero_(state)

    def fill(place: _Place, weight: Tensor) -> None:
        states = {} if inner is None else inner.state.get(weight, {})
        for name in UNDER_ROOTS:
            state = states.get(name)
            if isinstance(state, Tensor) and state.shape == weight.shape and state.is_cpu and not _is_split(state):
                place.kept.fill_(state)

    def unsettle(*_: Any) -> None:
        nonlocal settled
        settled = False

    def lost() -> str | None:
        there = {id(module) for module in model.modules()}
        held = {place.path for place in places if id(place.module) in there}  # merging drops copies that peft made
        for place in places:
            weight = place.tensor
            if place.path not in held or weight is None or weight.shape != place.kept.shape:
                return (
                    f"layer '{place.path}' holds no weight of shape {tuple(place.kept.shape)} any more; replace layers "
                    "of a model before keep_sparse begins"
                )
        return None

    def check() -> None:
        nonlocal gone_is_known
        if said := lost():
            gone_is_known = True
            raise MultiflowError(said)
        with torch.no_grad():
            for place, weight in _distinct(places):
                if revived := place.kept.revived(weight):
                    raise MultiflowError(
                        f"{revived} of the {place.kept.dropped:,} dropped weights of layer '{place.path}' are no "
                        "longer 0.0; something writes to them beside the optimizer that keep_sparse was given"
                    )

    with ExitStack() as stack:

        def hook(place: _Place, weight: Tensor) -> bool:
            if not isinstance(weight, nn.Parameter) or not ours.isdisjoint(weight._post_accumulate_grad_hooks or ()):
                return False
            sees_all = weight is places[0].tensor or weight is places[-1].tensor  # twice a backward pass suffices
            handle = _on_gradient(weight, partial(look_around, place) if sees_all else place.zero_what_changed)
            ours.add(handle.id)
            stack.callback(handle.remove)
            return True

        def follow(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
            place = by_module.get((id(module), name))
            if place is None or weight is None or weight.shape != place.kept.shape:
                return
            if not weight.is_meta:
                with torch.no_grad():
                    place.kept.zero_(weight)
            hook(place, weight)

        with torch.no_grad():
            for place, weight in _distinct(places):
                place.kept.zero_(weight)
        note()
        for place, weight in _distinct(places):
            hook(place, weight)
        by_module = {(id(place.module), place.parameter): place for place in places}
        stack.callback(register_module_parameter_registration_hook(follow).remove)
        for place in by_module.values():
            stack.callback(place.module.register_load_state_dict_post_hook(_Loaded(place)).remove)
        if inner is not None:
            stack.callback(inner.register_step_pre_hook(look_after).remove)
            stack.callback(inner.register_step_post_hook(after_step).remove)
            stack.callback(inner.register_load_state_dict_post_hook(unsettle).remove)
            stack.callback(inner.register_state_dict_pre_hook(zero_states).remove)
            stack.callback(zero_states)
        mask_factors(model, {key: place.kept for key, place in by_module.items()}, stack)
        stack.callback(zero_weights)
        yield check
        if not gone_is_known and (said := lost()):
            warnings.warn(f"{said}; its new weights were not kept sparse", stacklevel=3)


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


def _places(masks: Masks, found: Mapping[str, Sequence[WeightPlace]]) -> list[_Place]:
    """Give every parameter that masks are for, with one mask for all the layers that lie in it."""
    places: list[_Place] = []
    parts: dict[
        tuple[int, str], list[tuple[Layer, WeightPlace]]
    ] = {}  # module, name of its parameter -> the layers in it
    for layer in masks.layout.layers:
        if layer.part is None:
            kept = _Kept(masks[layer.name])
            places += [_Place(place.path, place.module, kept) for place in found[layer.name]]
            continue
        for place in found[layer.name]:
            parts.setdefault((id(place.module), place.parameter), []).append((layer, place))
    made: dict[int, _Kept] = {}  # one for each parameter, whose places may be several
    for within in parts.values():
        place = within[0][1]
        if id(place.whole) not in made:
            whole = torch.ones(place.whole.shape, dtype=torch.bool)
            for layer, _ in within:
                layer.view(whole).copy_(masks[layer.name])
            made[id(place.whole)] = _Kept(whole)
        places.append(_Place(place.path, place.module, made[id(place.whole)], place.parameter))
    return places


class _Place:
    """Where a model holds a weight, or a parameter of several; the tensor there may be replaced."""

    def __init__(self, path: str, module: nn.Module, kept: _Kept, parameter: str = "weight") -> None:
        self.module, self.kept, self.parameter = module, kept, parameter
        self.path = path if parameter == "weight" else f"{path}.{parameter}"
        self._seen: tuple[int, int, int] | None = None
        self._split: Tensor | None = None
        now = self.tensor
        if now is not None and _is_split(now):  # then the module holds other tensors while it runs
            self._split = now

    @property
    def tensor(self) -> Tensor | None:
        if self._split is not None:
            return self._split
        weight = self.module._parameters.get(self.parameter)
        return self.module._buffers.get(self.parameter) if weight is None else weight

    def note(self) -> None:
        """Take the weight as it is for sparse."""
        self._seen = self._state()

    def is_changed(self) -> bool:
        """Whether somebody has written to the weight, or put another there, since it was noted."""
        return self._state() != self._seen

    @torch.no_grad()
    def zero_if_changed(self, weight: Tensor) -> None:
        """Zero the dropped entries of the weight if it was written to."""
        if weight is self.tensor and self.is_changed():
            self.kept.zero_(weight)
            self.note()

    @torch.no_grad()
    def zero_what_changed(self, weight: Tensor) -> None:
        """Zero the dropped entries of the weight's gradient, and of the weight if it was written to."""
        self.zero_if_changed(weight)
        if weight.grad is not None:
            self.kept.zero_(weight.grad)

    def _state(self) -> tuple[int, int, int] | None:
        weight = self.tensor
        if weight is None:
            return None
        return id(weight), weight._version, 0 if self._split is not None else weight.data_ptr()


def _distinct(places: Sequence[_Place]) -> list[tuple[_Place, Tensor]]:
    """Give each tensor that is in one of the places, and fits it, once."""
    found: dict[int, tuple[_Place, Tensor]] = {}
    for place in places:
        weight = place.tensor
        if weight is not None and weight.shape == place.kept.shape:
            found.setdefault(id(weight), (place, weight))
    return list(found.values())


class _Kept:
    """Which entries of a weight are kept, on its device and split as it is (Trainer moves it, FSDP splits it).

    One byte a weight: all bits set where it is kept. A bitwise AND with the bits of the weight then writes exact zeros,
    whatever was there; on a CPU, chunk by chunk, in a quarter of the time of ``masked_fill_``.
    """

    def __init__(self, mask: Tensor) -> None:
        self._kept = mask.to(torch.int8).neg_()
        self._is_split = False
        self.shape = mask.shape
        self.dropped = mask.numel() - int(mask.sum())

    def zero_(self, tensor: Tensor) -> None:
        """Put dropped entries to 0.0, in place; a graph that needs the tensor once more stays of use."""
        bits = self._bits(tensor)
        if bits.numel() <= CHUNK or not bits.is_cpu:
            bits.bitwise_and_(self._kept)
            return
        rows = max(1, CHUNK * len(bits) // bits.numel())
        for some, kept in zip(bits.split(rows), self._kept.split(rows), strict=True):
            some.bitwise_and_(kept)

    def fill_(self, tensor: Tensor) -> None:
        """Put dropped entries of a tensor of numbers to 1, in place."""
        tensor.masked_fill_(self._kept == 0, 1.0)

    def revived(self, tensor: Tensor) -> int:
        """Count the dropped entries that are not 0.0; those of all processes if they hold a part each."""
        count = ((self._bits(tensor) != 0) & (self._kept == 0)).sum()
        if self._is_split:
            torch.distributed.all_reduce(count, group=tensor.device_mesh.get_group())  # type: ignore[attr-defined]
        return int(count)

    def _bits(self, tensor: Tensor) -> Tensor:
        """Return the tensor's own memory as whole numbers, after bringing what is kept to where and how it is."""
        if self._kept.device != tensor.device:
            self._kept = self._kept.to(tensor.device)
        if _is_split(tensor):
            if not self._is_split:
                from torch.distributed.tensor import distribute_tensor

                how = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
                self._kept = distribute_tensor(self._kept, *how, src_data_rank=None).to_local()
                self._is_split = True
            tensor = tensor.to_local()  # type: ignore[attr-defined]
        return tensor.data.view(WHOLE_NUMBERS[tensor.element_size()])


class _Loaded:
    """Zeroes the dropped entries of a module's weight when it has loaded a state; in a copy of the module, nothing.

    A class, for modules are copied and pickled with their hooks: averages of weights are, and models saved whole.
    """

    def __init__(self, place: _Place | None = None) -> None:
        self._place = place

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if self._place is not None and module is self._place.module:
            for place, weight in _distinct([self._place]):
                with torch.no_grad():
                    place.kept.zero_(weight)

    def __reduce__(self) -> tuple[type[_Loaded], tuple[()]]:
        return _Loaded, ()


def _on_gradient(weight: nn.Parameter, act: Callable[[Tensor], None]) -> Any:
    """Call ``act(weight)`` whenever a gradient has arrived, also if the weight is frozen now and trains later."""
    trains = weight.requires_grad
    hook = weight.requires_grad_(True).register_post_accumulate_grad_hook(act)
    weight.requires_grad_(trains)
    return hook


def _is_split(weight: Tensor) -> bool:
    """Whether a weight is a DTensor (importing their module takes too long to ask by class)."""
    return hasattr(weight, "placements")


def _bare(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of DistributedDataParallel and torch.compile."""
    while isinstance(model := uncompiled(model), nn.parallel.DistributedDataParallel):
        model = model.module
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
