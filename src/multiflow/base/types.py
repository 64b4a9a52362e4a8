"""The small frozen values through which the middle packages meet.

A *layer* is one distinct prunable weight, a *layout* is the ordered layers of a model, a *budget* says how many
weights each layer drops, and a *pattern* says which sets of weights a layer may drop.

A layer's weight is mostly the ``weight`` of an ``nn.Linear``. Others are views of a parameter: transformers' ``Conv1D``
stores it transposed, ``nn.MultiheadAttention`` holds query, key and value in one, and mixture-of-experts models stack
the weights of all experts in three dimensions. Here alone is written how such a view is found; everything else asks for
weights ``(out, in)`` by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NewType, TypeAlias

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, counted

MOST_BLOCK = 64  # M of the N:M patterns whose sparsities are written short
Budget = NewType("Budget", dict[str, int])
"""Layer name -> number of weights to drop, in layout order."""


@dataclass(frozen=True, slots=True)
class WeightPart:
    """Where in a module's parameter a layer's weight lies, if it is not the whole ``weight`` of shape ``(out, in)``.

    Args:
        parameter: its name in the module, such as ``in_proj_weight`` or ``gate_up_proj``.
        tail: what the layer's name adds to the module's path (``q_proj``, ``gate_up_proj.3``); empty if nothing.
        index: which matrix of a stack ``(experts, ..., ...)``; None = the parameter is one matrix.
        rows: begin and end of its rows; None = all.
        transposed: whether it is stored ``(in, out)``.
    """

    parameter: str
    tail: str = ""
    index: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def view(self, parameter: Tensor) -> Tensor:
        """Return the part ``(out, in)`` of the parameter, or of a tensor of its shape, as a view of its memory."""
        found = parameter if self.index is None else parameter[self.index]
        found = found if self.rows is None else found[self.rows[0] : self.rows[1]]
        return found.mT if self.transposed else found


@dataclass(frozen=True, slots=True)
class Layer:
    """One distinct prunable weight.

    Args:
        name: module path of the first module that uses the weight (no ``.weight``), then `WeightPart.tail`.
        shape: ``(out_features, in_features)``.
        group: ``vision``, ``text``, ``fusion`` or a name of your own.
        stream: whose padding mask the layer's input follows (``text``, ``image``), or None when nothing is padded.
        aliases: names by the other modules that share the weight.
        part: where the weight lies in the module; None = the whole parameter ``weight``.
    """

    name: str
    shape: tuple[int, int]
    group: str
    stream: str | None = None
    aliases: tuple[str, ...] = ()
    part: WeightPart | None = None

    def __repr__(self) -> str:
        # checkpoints of every version hash it: what was added later is said only where it is used
        said = ("name", "shape", "group", "stream", "aliases", *(("part",) if self.part else ()))
        return f"Layer({', '.join(f'{name}={getattr(self, name)!r}' for name in said)})"

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the weight by every module that uses it, the layer's own name first."""
        return (self.name, *self.aliases)

    def module(self, path: str) -> str:
        """Return the path of the module that one of `paths` lies in.

        >>> Layer("mlp.experts.up.3", (8, 4), "text", part=WeightPart("up", "up.3", 3)).module("mlp.experts.up.3")
        'mlp.experts'
        """
        tail = self.part.tail if self.part else ""
        return "" if tail == path else path.removesuffix(f".{tail}") if tail else path

    def parameter(self, path: str) -> str:
        """Return the name of the parameter in which the weight of one of `paths` lies."""
        return f"{self.module(path)}.{self.part.parameter if self.part else 'weight'}".lstrip(".")

    def view(self, parameter: Tensor) -> Tensor:
        """Return the layer's ``(out, in)`` of the parameter, or of a tensor of its shape, as a view of its memory."""
        return self.part.view(parameter) if self.part else parameter


@dataclass(frozen=True)
class Layout(Mapping[str, Layer]):
    """The layers of a model, in module order: a mapping from layer name to `Layer`."""

    layers: tuple[Layer, ...]
    _by_name: dict[str, Layer] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {layer.name: layer for layer in self.layers})

    def __repr__(self) -> str:
        groups = ", ".join(f"{group} {len(layers)}" for group, layers in self.groups.items())
        return f"Layout({counted(len(self), 'layer')}, {counted(self.size, 'weight')}: {groups or 'none'})"

    def __getitem__(self, name: str) -> Layer:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def size(self) -> int:
        """Number of prunable weights, shared ones counted once."""
        return sum(layer.size for layer in self.layers)

    @property
    def groups(self) -> dict[str, tuple[Layer, ...]]:
        """Group name -> its layers, groups in the order in which they first appear."""
        groups: dict[str, list[Layer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.group, []).append(layer)
        return {name: tuple(layers) for name, layers in groups.items()}


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Any weight of a layer may be dropped."""

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True, slots=True)
class PerRow:
    """Every output row of a layer drops the same number of weights: ``round(sparsity * in_features)``."""

    def __str__(self) -> str:
        return "per-row"


@dataclass(frozen=True, slots=True)
class NofM:
    """Of every ``of`` consecutive weights along the input, ``keep`` survive; sparsity is ``1 - keep / of``."""

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise MultiflowError(f"pattern '{self}' keeps {self.keep} of {self.of}; N:M needs 0 < N < M, such as '2:4'")

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


Pattern: TypeAlias = Unstructured | PerRow | NofM


def parse_pattern(pattern: str | Pattern) -> Pattern:
    """Read a pattern from its short form: ``unstructured``, ``per-row`` or ``N:M``.

    >>> parse_pattern("2:4")
    NofM(keep=2, of=4)
    """
    if isinstance(pattern, Unstructured | PerRow | NofM):
        return pattern
    text = str(pattern).strip().lower()
    if text in ("unstructured", "per-row"):
        return Unstructured() if text == "unstructured" else PerRow()
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return NofM(int(match[1]), int(match[2]))
    raise MultiflowError(f"unknown pattern '{pattern}'; expected 'unstructured', 'per-row' or 'N:M' such as '2:4'")


def short(sparsity: float) -> str:
    """Write a sparsity in as few digits as say it exactly, and that of an N:M pattern in six at most.

    >>> short(0.63), short(0.0), short(1 - 1 / 3), short(0.1234567)
    ('0.63', '0', '0.666667', '0.1234567')
    """
    digits, ratio = f"{sparsity:g}", Fraction(sparsity).limit_denominator(MOST_BLOCK)
    return digits if float(digits) == sparsity or abs(ratio - sparsity) < 1e-15 else repr(float(sparsity))


# where the weights of layers lie in a model

EXPERTS = re.compile(r"expert|moe|mixture", re.I)
"""In the names of modules, or of what they count: stacks of the weights of experts."""
STORED_OUT_IN, STORED_IN_OUT = False, True


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' ``Conv1D``, a linear layer whose weight is ``(in, out)``."""
    return any(
        base.__name__ == "Conv1D" and base.__module__.startswith("transformers") for base in type(module).__mro__
    )


def weights_of(path: str, module: nn.Module, transposed: str | None = None) -> dict[str, WeightPart | None]:
    """Return the weights of a module that can be pruned: name of the layer -> where it lies; None = ``weight``.

    Args:
        path: of the module.
        module: any; of most there are none.
        transposed: regex of names of parameters, with the module's path, that hold stacks stored ``(in, out)`` where
            the module itself does not say so.
    """
    if isinstance(module, nn.Linear):
        return {path: None}
    if is_conv1d(module) and _is_matrix(module._parameters.get("weight")):
        return {path: WeightPart("weight", transposed=True)}
    parts = _attention(module) if isinstance(module, nn.MultiheadAttention) else _stacks(path, module, transposed)
    return {f"{path}.{part.tail}".lstrip("."): part for part in parts}


def _is_matrix(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.dim() == 2


def _attention(module: nn.MultiheadAttention) -> Iterator[WeightPart]:
    fused = module._parameters.get("in_proj_weight")
    for number, which in enumerate("qkv"):
        if fused is not None:
            size = fused.shape[0] // 3
            yield WeightPart("in_proj_weight", f"{which}_proj", rows=(number * size, (number + 1) * size))
        elif _is_matrix(module._parameters.get(f"{which}_proj_weight")):
            yield WeightPart(f"{which}_proj_weight", f"{which}_proj")


def _stacks(path: str, module: nn.Module, transposed: str | None) -> Iterator[WeightPart]:
    stacks = {
        name: parameter
        for name, parameter in module._parameters.items()
        if isinstance(parameter, nn.Parameter)
        and parameter.dim() == 3
        and parameter.is_floating_point()
        and min(parameter.shape[1:]) > 1
        and "bias" not in name
    }
    if not stacks or not _holds_experts(path, module, {len(stack) for stack in stacks.values()}):
        return
    for name, stack in stacks.items():
        full = f"{path}.{name}".lstrip(".")
        way = transposed is not None and re.search(transposed, full) is not None
        way = way or _is_transposed(module, name, stacks)
        for index in range(len(stack)):
            yield WeightPart(name, f"{name}.{index}", index=index, transposed=way)


def _holds_experts(path: str, module: nn.Module, counts: set[int]) -> bool:
    counted = any(
        EXPERTS.search(name) and type(value) is int and value in counts for name, value in vars(module).items()
    )
    names = (type(module).__name__, *path.split(".")[-2:])
    return counted or any(EXPERTS.search(name) for name in names)


def _is_transposed(module: nn.Module, name: str, stacks: Mapping[str, nn.Parameter]) -> bool:
    """Whether a stack holds matrices ``(in, out)``: as the module says, else as biases, sizes or its sibling tell."""
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    rows, columns = stacks[name].shape[1:]
    if rows == columns and len(stacks) == 1:
        return STORED_OUT_IN
    for bias_name in (f"{name}_bias", name.replace("weight", "bias"), f"bias_{name}"):
        bias = module._parameters.get(bias_name)
        if bias is not None and bias_name != name and rows != columns and bias.shape[-1] in (rows, columns):
            return bias.shape[-1] == columns
    # what one puts out another takes in: of two that fit only one way round, that is how they are stored
    whole, half = (_chains(stacks, way) for way in (STORED_OUT_IN, STORED_IN_OUT))
    if whole != half:
        return half
    width = next((v for k, v in vars(module).items() if type(v) is int and re.fullmatch(HIDDEN, k)), None)
    first = next(iter(stacks))
    if width is not None and rows != columns and width in (rows, columns):  # the first takes it in, the others give it
        takes = name == first or stacks[name].shape == stacks[first].shape
        return (rows == width) if takes else (columns == width)
    return STORED_OUT_IN


HIDDEN = r"hidden_(size|dim)|d_model|embed_dim|dim|width"
"""Names under which modules keep the width of the states that go in and come out."""


def _chains(stacks: Mapping[str, nn.Parameter], transposed: bool) -> bool:
    """Whether one stack takes in what another puts out, whole or gated (half of it), and gives back what that took."""
    shapes = [tuple(stack.shape[1:]) for stack in stacks.values()]
    other = next((shape for shape in shapes if shape != shapes[0]), None)
    if other is None:
        return False
    (out_a, in_a), (out_b, in_b) = (shape[::-1] if transposed else shape for shape in (shapes[0], other))
    return in_a == out_b and in_b in (out_a, out_a / 2)


@dataclass(frozen=True, slots=True)
class WeightPlace:
    """Where a model holds the weight of a layer; the parameter there may be replaced.

    Args:
        path: of the module.
        module: that holds it.
        parameter: its name in the module.
        part: which part of the parameter; None = all of it, as it is.
    """

    path: str
    module: nn.Module
    parameter: str
    part: WeightPart | None = None

    @property
    def whole(self) -> nn.Parameter:
        """The parameter that is there now."""
        return self.module._parameters[self.parameter]  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """The weight ``(out, in)``: the parameter itself, or a view of its memory without a graph."""
        return self.whole if self.part is None else self.part.view(self.whole.detach())


def place_of(modules: Mapping[str, nn.Module], layer: Layer, path: str) -> WeightPlace | None:
    """Return where one of a layer's paths is in a model; None if the model has no such parameter."""
    found = places_of({at: (modules[at],) for at in [layer.module(path)] if at in modules}, layer, path)
    return found[0] if found else None


def places_of(modules: Mapping[str, tuple[nn.Module, ...]], layer: Layer, path: str) -> list[WeightPlace]:
    """Return where one of a layer's paths is in a model, of which several modules may have one path."""
    name, at = layer.part.parameter if layer.part else "weight", layer.module(path)
    there = modules.get(at, ())
    if not all(isinstance(module._parameters.get(name), nn.Parameter) for module in there):
        return []
    return [WeightPlace(at, module, name, layer.part) for module in there]


def is_hooked(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the module at a layer's path is called with the layer's input: not so inside of fused attention."""
    return path in modules and not (path and isinstance(modules.get(path.rpartition(".")[0]), nn.MultiheadAttention))


class LiveWeights(Mapping[str, Tensor]):
    """Layer name -> its weight ``(out, in)`` as the model holds it when it is looked up: the parameter, or a view."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        found = {layer.name: place_of(modules, layer, layer.name) for layer in layout.layers}
        self.places: dict[str, WeightPlace] = {name: place for name, place in found.items() if place is not None}

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name].weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def by_parameter(weights: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, dict[str, WeightPart | None]]]:
    """Return the distinct parameters in which weights lie, each with the layers in it; None = all of the parameter."""
    places = weights.places if isinstance(weights, LiveWeights) else {}
    found: dict[int, tuple[nn.Parameter, dict[str, WeightPart | None]]] = {}
    for name in weights:
        place = places.get(name)
        parameter = place.whole if place else weights[name]
        found.setdefault(id(parameter), (parameter, {}))[1][name] = place.part if place else None  # type: ignore[arg-type]
    return list(found.values())


def put_weights(weights: Mapping[str, Tensor], new: Callable[[str], Tensor]) -> None:
    """Point parameters to new memory that holds other weights; their memory of before is not written to.

    Args:
        weights: as the model holds them.
        new: ``f(name)``, the weight ``(out, in)`` that each of them gets.
    """
    for parameter, parts in by_parameter(weights):
        if None in parts.values():
            parameter.data = new(next(iter(parts))).to(parameter.dtype)
            continue
        data = parameter.data.clone()
        with torch.no_grad():
            for name, part in parts.items():
                part.view(data).copy_(new(name))  # type: ignore[union-attr]
        parameter.data = data
