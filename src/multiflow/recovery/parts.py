"""Sub-blocks of a model: attention, cross-attention, MLP, found by a rule in the tree of its modules.

A *block* is the innermost module of a list (``layers.3``) that holds two prunable layers or more, or where there is
none the innermost module that does, or a layer by itself. The modules right inside a block that hold two layers or more
are *parts* of it; those that hold one are joined with their neighbours to one part (``intermediate`` and ``output`` of
BERT). A part ends where the residual stream that it adds to can be seen: at the input of what comes next in its block,
a norm or another part, or at the output of the block. Parts that share a weight are one.

No family of models is known here: one batch is run to see which modules are called, and in which order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from multiflow.base.types import Layout

PARALLEL = re.compile(r"(^|\.)experts?(\.|$)", re.I)
"""Modules of a list that do not follow each other: which of them sees a token is for the model to decide."""
NORM = re.compile(r"norm|(^|\.)ln", re.I)


@dataclass(frozen=True)
class End:
    """Where the output of a part is seen.

    Args:
        block: path of the module that is run to get there.
        path: path of the module whose input or output it is.
        is_input: whether it is the input.
        layer: path of the last layer before it, whose stream says which tokens are real.
    """

    block: str
    path: str
    is_input: bool
    layer: str


@dataclass(frozen=True)
class Part:
    """Layers that are fitted together.

    Args:
        name: of the module that holds them, or of the first one.
        layers: names of the prunable layers in it.
        ends: where its output is seen; several where it is used in several places.
        parameters: names of all parameters that are trained: weights of the layers, biases, norms, scales.
        modules: paths of the modules that hold the layers and are called: the layers themselves, as a rule.
    """

    name: str
    layers: tuple[str, ...]
    ends: tuple[End, ...]
    parameters: tuple[str, ...]
    modules: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Paths of the modules that are run."""
        return tuple(dict.fromkeys(end.block for end in self.ends))


def find_parts(model: nn.Module, layout: Layout, run: Callable[[], Any]) -> list[Part]:
    """Find the parts of a model, in the order in which they are run.

    Args:
        model: the model.
        layout: its prunable layers.
        run: runs the model on a batch.
    """
    called = trace(model, run)
    order = {path: at for at, path in enumerate(called)}
    held: dict[str, list[tuple[str, nn.Parameter]]] = {}  # module that is called -> layers in it, and their parameters
    for layer in layout.layers:
        for path in layer.paths:
            at = layer.module(path)
            parameter = getattr(model.get_submodule(at), layer.part.parameter if layer.part else "weight")
            while at and at not in order:  # a layer that computes without being called
                at = at.rpartition(".")[0]
            if at:
                held.setdefault(at, []).append((layer.name, parameter))
    paths = list(held)
    of_block: dict[str, list[str]] = {}
    for path in sorted(paths, key=order.__getitem__):
        of_block.setdefault(find_block(path, paths, order), []).append(path)
    found: list[Part] = []
    for block, layers in of_block.items():
        found += _parts_of(model, block, layers, held, called)
    return sorted(joined(found), key=lambda part: min(order[path] for path in part.modules))


def blocks_of_parts(parts: Sequence[Part]) -> dict[str, str]:
    """Return path of every block -> a layer in it, whose stream says which tokens are real."""
    return {end.block: end.layer for part in parts for end in part.ends}


def find_blocks(model: nn.Module, layout: Layout, run: Callable[[], Any]) -> dict[str, str]:
    """Find the blocks of a model, as `find_parts` does: path -> a layer in it."""
    return blocks_of_parts(find_parts(model, layout, run))


def find_block(layer: str, layers: Sequence[str], called: Mapping[str, int]) -> str:
    """Return the path of the block that a layer is in.

    Args:
        layer: path of a prunable layer.
        layers: paths of all of them.
        called: paths of the modules that the model calls.
    """
    words = layer.split(".")
    above = [".".join(words[:n]) for n in range(len(words) - 1, 0, -1)]
    fit = [
        path
        for path in above
        if path in called and not PARALLEL.search(path) and sum(other.startswith(f"{path}.") for other in layers) > 1
    ]
    return next((path for path in fit if path.rpartition(".")[2].isdigit()), fit[0] if fit else layer)


def _parts_of(
    model: nn.Module,
    block: str,
    layers: Sequence[str],
    held: Mapping[str, Sequence[tuple[str, nn.Parameter]]],
    called: Sequence[str],
) -> Iterator[Part]:
    # 1. the modules right inside the block, in the order in which they are called
    inside = [path for path in called if path.startswith(f"{block}.")]
    outer = [path for path in inside if not any(path.startswith(f"{other}.") for other in inside)]
    groups: list[tuple[list[str], list[str]]] = []  # modules, layers in them
    alone = False
    for child in outer if block not in held else [block]:
        of = [path for path in layers if path == child or path.startswith(f"{child}.")]
        if not of:
            continue
        single = sum(len(held[path]) for path in of) == 1
        if single and alone:
            groups[-1][0].append(child)
            groups[-1][1].extend(of)
        else:
            groups.append(([child], of))
        alone = single

    # 2. where each ends, and what lies between
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    at = {path: number for number, path in enumerate(outer)}
    begin = -1
    for number, (children, of) in enumerate(groups):
        last = number == len(groups) - 1
        if last:
            end, until = End(block, block, False, held[of[-1]][-1][0]), len(outer)
        else:
            until = at[groups[number + 1][0][0]]
            until -= until - 1 > at[children[-1]] and bool(NORM.search(outer[until - 1]))
            end = End(block, outer[until], True, held[of[-1]][-1][0])
        between = [path for path in outer if begin < at[path] < until] + ([block] if last else [])
        begin = until - 1
        own = [known[id(parameter)] for path in of for _, parameter in held[path]]
        own += [known[key] for path in between for key in _small(model, path, outer if path == block else ())]
        yield Part(
            children[0] if len(groups) > 1 else block,
            tuple(dict.fromkeys(name for path in of for name, _ in held[path])),
            (end,),
            tuple(dict.fromkeys(own)),
            tuple(of),
        )


def _small(model: nn.Module, path: str, without: Sequence[str]) -> Iterator[int]:
    """Identities of the parameters of a module that are no matrices: biases, norms, scales; some modules left out."""
    for name, parameter in model.get_submodule(path).named_parameters():
        full = f"{path}.{name}"
        if parameter.dim() <= 1 and not any(full.startswith(f"{other}.") for other in without):
            yield id(parameter)


def joined(parts: Sequence[Part]) -> list[Part]:
    """Make parts with a layer in common one."""
    found: list[Part] = []
    for part in parts:
        same = [one for one in found if set(one.layers) & set(part.layers)]
        whole = [*same, part]
        found = [one for one in found if one not in same]
        found.append(
            Part(
                whole[0].name,
                tuple(dict.fromkeys(name for one in whole for name in one.layers)),
                tuple(end for one in whole for end in one.ends),
                tuple(dict.fromkeys(name for one in whole for name in one.parameters)),
                tuple(dict.fromkeys(path for one in whole for path in one.modules)),
            )
        )
    return found


def trace(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Run a model once and list the paths of the modules that were called, each the first time.

    A module that is in several places is told by the module that called it.
    """
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    called: dict[str, None] = {}
    stack: list[str] = [""]

    def begin(module: nn.Module, args: Any) -> None:
        paths = places[id(module)]
        path = max(paths, key=lambda path: max(len(at) for at in stack if not at or f"{path}.".startswith(f"{at}.")))
        stack.append(path)
        called.setdefault(path)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.callback(module.register_forward_pre_hook(begin).remove)
                hooks.callback(module.register_forward_hook(end).remove)
        run()
    return list(called)


def first_tensor(value: Any) -> Tensor | None:
    """Return the first floating-point tensor in what a module takes or gives."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := first_tensor(one)) is not None), None)
    return None
