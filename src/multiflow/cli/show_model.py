"""What is in a model: its prunable layers by group, and what stays dense."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from torch import nn

from multiflow.base.types import Layer, Layout
from multiflow.cli.console import percent, show, table
from multiflow.families import adapter_for

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def show_model(model: nn.Module, name: str) -> None:
    """Print the layers of a model, alike ones of a stack of blocks in one row, their groups and what stays dense."""
    adapter = adapter_for(model)
    layout = adapter.layout(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        (
            spanned(alike),
            alike[0].group,
            " x ".join(map(str, alike[0].shape)),
            len(alike),
            f"{sum(x.size for x in alike):,}",
        )
        for alike in blocks(layout)
    ]
    title = f"{name}: {type(model).__name__}, family {adapter.name}, {total:,} weights"
    show(table(title, ["prunable layers", "group", "out x in", "layers", "weights"], rows))
    groups = [
        (group, len(layers), f"{(count := sum(layer.size for layer in layers)):,}", percent(count / total))
        for group, layers in layout.groups.items()
    ]
    groups.append(("in all", len(layout), f"{layout.size:,}", percent(layout.size / total)))
    show(table("", ["group", "layers", "weights", "of the model"], groups))
    dense = [(where, kind, f"{count:,}", percent(count / total)) for where, kind, count in stays_dense(model, layout)]
    show(table("", ["stays dense", "kind", "weights", "of the model"], dense))


def blocks(layout: Layout) -> Iterator[list[Layer]]:
    """Gather the layers that differ in the number of their block alone, group by group."""
    for layers in layout.groups.values():
        alike: dict[tuple[str, tuple[int, int]], list[Layer]] = {}
        for layer in layers:
            alike.setdefault((NUMBER.sub("*", layer.name), layer.shape), []).append(layer)
        yield from alike.values()


def spanned(layers: list[Layer]) -> str:
    """Write the names of layers that differ in numbers as one.

    >>> spanned([Layer(f"layer.{i}.fc", (2, 2), "text") for i in range(6)])
    'layer.{0-5}.fc'
    """
    numbers = [NUMBER.findall(layer.name) for layer in layers]
    spans = iter([span(sorted({int(n) for n in column})) for column in zip(*numbers, strict=True)])
    return NUMBER.sub(lambda _: next(spans), layers[0].name)


def span(numbers: list[int]) -> str:
    """Write numbers as ranges: one alone as it is, several in braces.

    >>> span([3]), span([0, 1, 2, 6])
    ('3', '{0-2,6}')
    """
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def stays_dense(model: nn.Module, layout: Layout) -> list[tuple[str, str, int]]:
    """List what is not pruned: other linear layers and lone parameters by name, the rest summed by kind."""
    seen = {id(model.get_submodule(name).weight) for name in layout}
    listed: list[tuple[str, str, int]] = []
    sums: dict[str, int] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Linear) and name == "weight":
                listed.append((path, "Linear", parameter.numel()))
            elif type(module).__module__.startswith("torch.nn"):
                kind = "biases of Linear" if isinstance(module, nn.Linear) else type(module).__name__
                sums[kind] = sums.get(kind, 0) + parameter.numel()
            else:
                listed.append((f"{path}.{name}".lstrip("."), "Parameter", parameter.numel()))
    return [*listed, *(("all", kind, count) for kind, count in sums.items())]
