"""What weights multiply where no hook of their own shows it: in fused attention and in stacks of experts.

A module that holds such weights runs once more, just before it runs, under a mode that sees every matrix product: one
whose factor lies in the memory of a watched parameter shows what that weight multiplies. For this second run padding is
NaN: a row of a product that is NaN comes from padding, however tokens were sorted, repeated or sent to experts on the
way, and does not count. Query, key and value of ``nn.MultiheadAttention`` are its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multiflow.base.errors import MultiflowError
from multiflow.base.guards import exactly
from multiflow.base.types import Layout, WeightPlace, is_hooked, place_of

Real = Callable[[str, Tensor, bool], Tensor | None]
"""``f(layer, input (..., in), was_turned)``: which tokens are real, as bool ``(...)``; None = all of them. One that was
turned puts the sequence first in the model, and the batch here."""
Observe = Callable[[str, Tensor], None]

aten = torch.ops.aten
PRODUCTS = {  # operation -> where its two factors stand among its arguments
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.mv.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
    aten.addmv.default: (1, 2),
}
QKV = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@dataclass
class Block:
    """A module that runs once more, and what is watched in it.

    Args:
        path: of the module.
        module: itself.
        arguments: its own argument -> the layer whose input that is.
        places: parameter, by its full name -> where it is.
        layers: parameter -> index in its stack (None = it is one matrix) -> the layer.
        seen: parameters of which a product was seen.
        fed: paths of the modules that hold them, and were given any states.
    """

    path: str
    module: nn.Module
    arguments: dict[str, str] = field(default_factory=dict)
    places: dict[str, WeightPlace] = field(default_factory=dict)
    layers: dict[str, dict[int | None, str]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    fed: set[str] = field(default_factory=set)


def find_blocks(modules: Mapping[str, nn.Module], layout: Layout) -> list[Block]:
    """Find the modules around the weights of a layout that no hook of their own shows, each once."""
    blocks: dict[str, Block] = {}
    for layer in layout.layers:
        for path in layer.paths:
            place = place_of(modules, layer, path)
            if place is None or is_hooked(path, modules):
                continue
            if isinstance(place.module, nn.MultiheadAttention):
                block = blocks.setdefault(place.path, Block(place.path, place.module))
                block.arguments[QKV[layer.part.tail]] = path  # type: ignore[union-attr]
                continue
            around = _parent(path) if layer.part is None else _router(place.path, modules)
            block = blocks.setdefault(around, Block(around, modules[around]))
            full = layer.parameter(path)
            block.places[full] = place
            block.layers.setdefault(full, {})[layer.part.index if layer.part else None] = path
    return list(blocks.values())


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _router(path: str, modules: Mapping[str, nn.Module]) -> str:
    """What sends tokens to experts: the outermost module around them inside of their numbered block."""
    parts = path.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return _parent(path) or path
    around = [".".join(parts[:n]) for n in range(numbers[-1] + 2, len(parts))]
    return next((at for at in around if not isinstance(modules[at], nn.ModuleList | nn.ModuleDict)), path)


class Inside:
    """Shows what weights inside of blocks multiply.

    Args:
        blocks: as `find_blocks` gives them.
        observe: ``f(layer, rows)``: told of real inputs ``(tokens, in)``.
        real: which tokens of an input are real.
    """

    def __init__(self, blocks: list[Block], observe: Observe, real: Real) -> None:
        self._blocks, self._observe, self._real = blocks, observe, real
        self.busy = False
        """Whether a block runs once more: hooks inside of it have seen what they see, or will."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run blocks once more before they run; no hook is left afterwards."""
        with ExitStack() as stack:
            if any(isinstance(block.module, nn.MultiheadAttention) for block in self._blocks):
                stack.enter_context(_by_the_long_way())
            for block in self._blocks:
                for place in {place.path: place for place in block.places.values()}.values():
                    fed = partial(_note_fed, block.fed, place.path)
                    stack.callback(place.module.register_forward_pre_hook(fed, with_kwargs=True).remove)
                hook = block.module.register_forward_pre_hook(self._hook(block), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def check(self) -> None:
        """Refuse weights of which no product was seen although their module was given something to multiply."""
        for block in self._blocks:
            for full in block.layers:
                if full not in block.seen and block.places[full].path in block.fed:
                    kind = type(block.places[full].module).__name__
                    raise MultiflowError(
                        f"nobody can see what '{full}' multiplies: a {kind} uses a copy of it, or kernels of its own; "
                        f"leave it dense with exclude={exactly(block.places[full].path)}"
                    )

    def _hook(self, block: Block) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.busy:
                return
            self.busy = True
            try:
                with torch.no_grad(), _eager_experts(block):
                    self._look(block, args, kwargs)
            finally:
                self.busy = False

        return hook

    def _look(self, block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # 1. The arguments that are inputs of weights themselves, in batches first.
        if isinstance(module := block.module, nn.MultiheadAttention):
            kwargs = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
            args, named = (), "query"
            turned: dict[int, Tensor] = {}  # one tensor in several roles stays one, and is measured once
            for argument, layer in block.arguments.items():
                value = kwargs[argument]
                value = turned.setdefault(id(value), _turned(value) if _is_turned(module, value) else value)
                real = self._real(layer, value, _is_turned(module, value))
                self._observe(layer, value if real is None else value[real])
        else:
            named = next((name for name, value in kwargs.items() if _is_states(value)), "")
        if not block.layers:
            return
        # 2. The states that go in, with NaN for what is padding.
        at = next((at for at, value in enumerate(args) if _is_states(value)), None)
        states = kwargs.get(named) if at is None else args[at]
        layer = next(iter(next(iter(block.layers.values())).values()))
        if states is None:
            raise MultiflowError(
                f"'{block.path}' is given no tensor of states, so that nobody can tell which tokens layer '{layer}' "
                f"sees; leave it dense with exclude={exactly(block.path)}"
            )
        turns = _is_turned(block.module, states)
        real = self._real(layer, _turned(states) if turns else states, turns)
        padded = real is not None and not bool(real.all())
        if padded:
            states = states.clone()
            (_turned(states) if turns else states)[~real] = torch.nan  # type: ignore[operator]
        if at is None:
            kwargs = {**kwargs, named: states}
        else:
            args = (*args[:at], states, *args[at + 1 :])
        # 3. The second run.
        mode = Products(block, self._observe, drops_nan=padded)
        with mode:
            block.module(*args, **kwargs)
        mode.check()


def _is_turned(module: nn.Module, value: Tensor) -> bool:
    """Whether a module takes the sequence first and the batch second."""
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first and value.dim() == 3


def _turned(value: Tensor) -> Tensor:
    return value.transpose(0, 1)


def _note_fed(fed: set[str], path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(_is_states(value) and value.numel() for value in (*args, *kwargs.values())):
        fed.add(path)


def _is_states(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1


class Products(TorchDispatchMode):
    """Sees every matrix product, and tells of those with a watched weight what it multiplies.

    Args:
        block: whose weights are watched.
        observe: ``f(layer, rows)``.
        drops_nan: whether rows of NaN are padding.
    """

    def __init__(self, block: Block, observe: Observe, *, drops_nan: bool) -> None:
        super().__init__()
        self._block, self._observe, self._drops_nan = block, observe, drops_nan
        self._dropped = dict.fromkeys(block.layers, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the operation, and look at its factors."""
        if func in PRODUCTS:
            left, right = (args[at] for at in PRODUCTS[func])
            self._look(left, right)
        elif func is aten.linear.default:
            self._look(args[0], args[1].mT)
        return func(*args, **(kwargs or {}))

    def check(self) -> None:
        """Refuse NaN that came up on the way: the stacks of one module must have met the same padding."""
        for path in {place.path for place in self._block.places.values()} if self._drops_nan else ():
            met = {full: n for full, n in self._dropped.items() if self._block.places[full].path == path}
            if len(set(met.values())) > 1:
                raise MultiflowError(
                    f"NaN in the input of '{max(met, key=lambda full: met[full])}'; check the data, or run the model "
                    "in float32 or bfloat16 if it overflows"
                )

    def _look(self, left: Tensor, right: Tensor) -> None:
        for full, place in self._block.places.items():
            weight = place.whole
            if _holds(weight, right):
                self._see(full, place, left, right)
            elif _holds(weight, left):  # the weight stands first: what it multiplies are columns
                self._see(full, place, right[:, None].mT if right.dim() == 1 else right.mT, left.mT)

    def _see(self, full: str, place: WeightPlace, value: Tensor, factor: Tensor) -> None:
        """Tell of a product ``value (..., in) @ factor (in, out)``, of one matrix or of several in a row."""
        weight, part = place.whole, place.part
        self._block.seen.add(full)
        matrix = weight if weight.dim() == 2 else weight[0]
        as_stored = part is not None and part.transposed
        rows, columns = matrix.stride() if as_stored else matrix.stride()[::-1]
        width = matrix.shape[0] if as_stored else matrix.shape[1]
        if factor.shape[-2] != width or (min(factor.shape[-2:]) > 1 and factor.stride()[-2:] != (rows, columns)):
            stored, said = ("(out, in)", "(in, out)") if as_stored else ("(in, out)", "(out, in)")
            raise MultiflowError(
                f"'{full}' {tuple(weight.shape)} is stored {stored}, not {said} as its module's sizes seemed to say; "
                + ("declare" if not as_stored else "take it out of")
                + f" Adapter(transposed=r'...'), a regex of such parameters, or leave it dense with "
                f"exclude={exactly(place.path)}"
            )
        layers = self._block.layers[full]
        if weight.dim() == 2:
            self._tell(full, layers[None], value.reshape(-1, width))
            return
        begin = (factor.storage_offset() - weight.storage_offset()) // weight.stride(0)
        if factor.dim() == 2:
            if begin in layers:
                self._tell(full, layers[begin], value.reshape(-1, width))
            return
        for number in range(len(factor)):  # all experts at once: a row of zeros is a slot that no token fills
            if begin + number in layers:
                slots = value[number].reshape(-1, width)
                self._tell(full, layers[begin + number], slots[(slots != 0).any(1)])

    def _tell(self, full: str, layer: str, rows: Tensor) -> None:
        if self._drops_nan:
            bad = rows.isnan().any(1)
            self._dropped[full] += int(bad.sum())
            rows = rows[~bad]
        if len(rows):
            self._observe(layer, rows)


def _holds(weight: Tensor, factor: Tensor) -> bool:
    """Whether a factor is a view of a weight's memory."""
    if factor.dim() < 2 or weight.is_meta or factor.device != weight.device:
        return False
    if factor.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
        return False
    begin, size = weight.storage_offset(), weight.numel()
    return begin <= factor.storage_offset() < begin + size


@contextmanager
def _eager_experts(block: Block) -> Iterator[None]:
    """Let experts of transformers multiply one matrix after the other: their other ways copy what they multiply."""
    name = "_experts_implementation_internal"
    configs = {id(c): c for m in block.module.modules() if hasattr(c := getattr(m, "config", None), name)}
    before = [(config, getattr(config, name)) for config in configs.values()]
    try:
        for config, _ in before:
            setattr(config, name, "eager")
        yield
    finally:
        for config, value in before:
            setattr(config, name, value)


@contextmanager
def _by_the_long_way() -> Iterator[None]:
    """Switch off what computes attention and the layer around it in one step, which calls no module."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
