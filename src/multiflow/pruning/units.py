"""Units: the neurons of MLPs and the heads of attention, which a model can lose as a whole.

A neuron is a row of the layers before the activation and a column of the layer behind it. A head is a run of rows of
query, key and value and the columns of the output layer that read it; where several heads share keys and values, they
and those go together. Layers belong together by how their paths end, in the words of transformers and its relatives,
and by their shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multiflow.base.structure import HEAD_COUNTS
from multiflow.base.types import Layer, Layout, is_conv1d, is_hooked

MLP, HEADS = "mlp", "heads"
NEURONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("fc1",), "fc2"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("w1",), "w2"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("linear_1",), "linear_2"),
    (("c_fc",), "c_proj"),
    (("fc_in",), "fc_out"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
    (("intermediate_query.dense",), "output_query.dense"),
    (("0",), "2"),
    (("0",), "3"),
)
"""Ends of the paths of the layers before the activation, and of the layer behind it."""

ATTENTION: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("q_proj", "k_proj", "v_proj"), ("out_proj", "o_proj", "proj", "dense", "c_proj")),
    (("self.query", "self.key", "self.value"), ("output.dense",)),
    (("attention.query", "attention.key", "attention.value"), ("output.dense",)),
    (("query", "key", "value"), ("output", "out_proj", "projection")),
    (("q", "k", "v"), ("o", "proj", "out")),
    (("q_lin", "k_lin", "v_lin"), ("out_lin",)),
    (("qkv",), ("proj", "projection", "out_proj")),
    (("c_attn",), ("c_proj",)),
)
"""Ends of the paths of query, key and value (or all three in one, in this order), and of the output layer."""

EXPERTS, FUSED = "weights of experts in one stack", "projections inside fused attention"
WHOLE = {EXPERTS: MLP, FUSED: HEADS}
"""Why a layer keeps its units -> the kind of units that it would have."""
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head")


@dataclass(frozen=True)
class UnitStack:
    """The units of one MLP or one attention.

    Args:
        name: the path that its layers have in common.
        kind: ``mlp`` or ``heads``.
        group: of its layers.
        count: number of units.
        rows: layer whose rows are units -> for each unit the numbers of its rows, ``(count, rows of a unit)``.
        columns: layer whose columns are units -> the same for columns.
    """

    name: str
    kind: str
    group: str
    count: int
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers, those with rows first."""
        return (*self.rows, *self.columns)

    def mask(self, layout: Layout, kept: Tensor) -> dict[str, Tensor]:
        """Return for each layer the mask that drops the units which are not kept."""
        masks = {name: torch.ones(layout[name].shape, dtype=torch.bool) for name in self.layers}
        for name, numbers in self.rows.items():
            masks[name][numbers[~kept].flatten()] = False
        for name, numbers in self.columns.items():
            masks[name][:, numbers[~kept].flatten()] = False
        return masks

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Sum the scores of the weights of each unit, ``(count,)`` in float64."""
        found = torch.zeros(self.count, dtype=torch.float64)
        for name, numbers in self.rows.items():
            found += scores[name].double().sum(1).cpu()[numbers].sum(1)
        for name, numbers in self.columns.items():
            found += scores[name].double().sum(0).cpu()[numbers].sum(1)
        return found


def find_units(model: nn.Module, layout: Layout) -> list[UnitStack]:
    """Find the MLPs and attentions among the layers of a model, in module order.

    >>> [stack.kind for stack in find_units(vit, adapter.layout(vit))]      # doctest: +SKIP
    ['heads', 'mlp', 'heads', 'mlp']
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layout = Layout(tuple(layer for layer in layout.layers if _why_whole(layer, modules) is None))
    taken: set[str] = set()
    found: list[UnitStack] = []
    for out in layout.layers:
        for stack in (*_mlps(layout, out, modules), *_attentions(layout, out, modules)):
            if not taken.intersection(stack.layers):
                taken |= {*stack.layers}
                found.append(stack)
    return found


def stays_whole(model: nn.Module, layout: Layout, kinds: Sequence[str]) -> str:
    """Say which layers have no units that could go, as they are parts of a parameter that holds others too.

    Args:
        model: the model.
        layout: its layers.
        kinds: of the units that are asked for, ``mlp`` and ``heads`` or one of them.

    Returns:
        A sentence that names the kinds, a layer of each, and their share of the weights; empty where there are none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, list[Layer]] = {}
    for layer in layout.layers:
        if (why := _why_whole(layer, modules)) is not None and WHOLE[why] in kinds:
            found.setdefault(why, []).append(layer)
    if not found:
        return ""
    share = sum(layer.size for of in found.values() for layer in of) / layout.size
    listed = ", ".join(f"{len(of)} {why}, first '{of[0].name}'" for why, of in found.items())
    return f"{share:.0%} of the prunable weights keep all their units: {listed}"


def _why_whole(layer: Layer, modules: Mapping[str, nn.Module]) -> str | None:
    """Why no rows or columns of a layer can be removed; None if they can."""
    module = modules.get(layer.module(layer.name))
    if layer.part is not None and layer.part.index is not None:
        return EXPERTS
    return None if module is not None and _is_linear(module) and is_hooked(layer.name, modules) else FUSED


def _relatives(layout: Layout, out: Layer, end: str, ends: Sequence[str]) -> tuple[str, list[Layer]] | None:
    """Find layers with the same beginning as ``out``, whose path ends so, and with other ends."""
    if not (out.name == end or out.name.endswith(f".{end}")):
        return None
    stem = out.name[: len(out.name) - len(end)]
    names = [f"{stem}{one}" for one in ends]
    return (stem.rstrip("."), [layout[name] for name in names]) if all(name in layout for name in names) else None


def _mlps(layout: Layout, out: Layer, modules: Mapping[str, nn.Module]) -> Iterator[UnitStack]:
    for befores, end in NEURONS:
        related = _relatives(layout, out, end, befores)
        if related is None:
            continue
        stem, before = related
        count = out.shape[1]
        if any(layer.shape[0] != count or layer.group != out.group for layer in before):
            continue
        if _something_between(stem, befores, end, count, modules):
            continue
        each = torch.arange(count)[:, None]
        yield UnitStack(stem, MLP, out.group, count, {layer.name: each for layer in before}, {out.name: each})
        return


def _something_between(
    stem: str, befores: Sequence[str], end: str, hidden: int, modules: Mapping[str, nn.Module]
) -> bool:
    """Whether a module with parameters, such as a norm, may stand between the layers of an MLP.

    In a `nn.Sequential` that is all between the two; elsewhere all beside them whose parameters are as long as the
    hidden layer.
    """
    around = modules.get(stem)
    first, last = modules[f"{stem}.{befores[0]}".lstrip(".")], modules[f"{stem}.{end}".lstrip(".")]
    if isinstance(around, nn.Sequential):
        inside = list(around.children())
        at = [number for number, child in enumerate(inside) if child is first or child is last]
        return not all(_is_elementwise(child) for child in inside[at[0] + 1 : at[-1]])
    if befores[0].isdigit():
        return True
    beside = [m for p, m in modules.items() if p.rpartition(".")[0] == stem and not _is_linear(m)]
    return any(
        parameter.dim() == 1 and len(parameter) == hidden
        for module in beside
        for parameter in module._parameters.values()
        if parameter is not None
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _is_elementwise(module: nn.Module) -> bool:
    """Whether a module changes each number by itself, as activations and dropout do."""
    home, kind = type(module).__module__, type(module).__name__
    if isinstance(module, nn.Identity) or kind == "Dropout":
        return True
    mixes = re.search(r"softm|GLU|Attention", kind, re.I)
    return home in ("torch.nn.modules.activation", "transformers.activations") and not mixes


def _attentions(layout: Layout, out: Layer, modules: Mapping[str, nn.Module]) -> Iterator[UnitStack]:
    for befores, ends in ATTENTION:
        for end in ends:
            related = _relatives(layout, out, end, befores)
            if related is None:
                continue
            stem, before = related
            size = head_size(before[0].name, before[0].shape[0] // (3 if len(before) == 1 else 1), modules)
            stack = None if size is None else _heads(stem, before, out, size)
            if stack is not None:
                yield stack
                return


def _heads(stem: str, before: Sequence[Layer], out: Layer, size: int) -> UnitStack | None:
    """Group rows and columns by heads; None where the shapes do not fit."""
    width = out.shape[1]
    if width % size or any(layer.group != out.group for layer in before):
        return None
    columns = torch.arange(width).view(-1, size)
    if len(before) == 1:
        if before[0].shape[0] != 3 * width:
            return None
        fused = torch.cat([columns, columns + width, columns + 2 * width], 1)
        return UnitStack(stem, HEADS, out.group, len(columns), {before[0].name: fused}, {out.name: columns})
    query, key, value = before
    shared = key.shape[0]
    if query.shape[0] != width or value.shape[0] != shared or shared % size or width % shared:
        return None
    count = shared // size
    wide = torch.arange(width).view(count, -1)  # the heads that share keys and values stand side by side
    narrow = torch.arange(shared).view(count, size)
    rows = {query.name: wide, key.name: narrow, value.name: narrow}
    return UnitStack(stem, HEADS, out.group, count, rows, {out.name: wide})


def head_size(path: str, width: int, modules: Mapping[str, nn.Module]) -> int | None:
    """Return the size of a head, as the module around a layer says it; None where none says it."""
    around = path
    while around:
        around = around.rpartition(".")[0]
        holder = modules.get(around)
        for name in HEAD_SIZES:
            size = getattr(holder, name, None)
            if isinstance(size, int) and size > 0 and width % size == 0:
                return size
        for name in HEAD_COUNTS:
            count = getattr(holder, name, None)
            if isinstance(count, int) and count > 0 and width % count == 0 and "key_value" not in name:
                return width // count
        if re.search(r"\.\d+$", around):
            return None
    return None
