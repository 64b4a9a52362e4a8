"""Layers that a model runs for nothing are left out of the budget, and said.

The vision tower of a language model often runs to its end although a state before that is taken; poolers and heads of a
tower run inside of models that never read them. Half of such a layer's weights would count as pruned, and nobody would
notice. One sample of the first batch shows which layers they are, see `multiflow.calibration.reach`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor, nn

from multiflow.base.adapter import Adapter, layer_paths, parts, regex_of
from multiflow.base.offload import input_device
from multiflow.base.types import Layout
from multiflow.calibration import Stats, iterate, to_device, unused_layers

UNUSED = "never used: nothing of the output depends on it"
"""Why such a layer stays dense, in `Adapter.dense`."""


def spare_unused(
    model: nn.Module, adapter: Adapter, batches: Iterable[Any] | Stats | None
) -> tuple[Adapter, Iterable[Any] | Stats | None]:
    """Leave out layers on which the output does not depend, where an adapter asks for that; a warning names them.

    Args:
        model: is run on one sample, and left as it was.
        adapter: that of the model; with ``spares_unused`` off nothing is done.
        batches: of which the first is looked at; statistics know what was left out when they were measured.

    Returns:
        The adapter, with these layers among its dense ones, and the batches, the first one included.
    """
    if not adapter.spares_unused or batches is None:
        return adapter, batches
    layout = adapter.layout(model)
    if isinstance(batches, Stats):
        names = tuple(name for name in batches.unused if name in layout)
    else:
        batches = batches if _by_number(batches) or isinstance(batches, Sequence) else _begun(batches)
        names = find_unused(model, adapter, layout, _first(batches))
        if names:
            warnings.warn(said(layout, names), stacklevel=3)
    return left_out(model, adapter, layout, names), batches


def find_unused(model: nn.Module, adapter: Adapter, layout: Layout, batch: Any) -> tuple[str, ...]:
    """Return the layers of which nothing in the output depends, by one sample of a batch; none where there is none."""
    if batch is None:
        return ()
    device = input_device(model)
    return unused_layers(model, layout, [to_device(_one(part), device) for part in parts(batch)], adapter.forward)


def left_out(model: nn.Module, adapter: Adapter, layout: Layout, names: Sequence[str]) -> Adapter:
    """Return the adapter with some layers among those that stay dense."""
    if not names:
        return replace(adapter, spares_unused=False)
    paths = [path for name in names for path in layout[name].paths]
    regex = regex_of(paths, layer_paths(model, adapter.transposed))
    kept = {layer.group for layer in layout.layers if layer.name not in set(names)}
    return replace(
        adapter,
        groups={group: of for group, of in adapter.groups.items() if group in kept} or adapter.groups,
        exclude="|".join(filter(None, (adapter.exclude, regex))),
        dense={**adapter.dense, **dict.fromkeys(paths, UNUSED)},
        spares_unused=False,
    )


def said(layout: Layout, names: Sequence[str]) -> str:
    """Say which layers are for nothing, and what part of the weights they are."""
    share = sum(layout[name].size for name in names) / layout.size
    listed = f"'{names[0]}'" if len(names) == 1 else f"'{names[0]}' to '{names[-1]}'"
    return (
        f"nothing of the model's output depends on {len(names)} of {len(layout)} layers, {share:.1%} of the prunable "
        f"weights, {listed}: they stay dense and out of the budget; an adapter with spares_unused=False counts them"
    )


class _Begun:
    """Batches whose first pass has begun: it goes on where it was, later ones begin afresh."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._pass = batches, _begun(iterate(batches))

    def __iter__(self) -> Iterator[Any]:
        begun, self._pass = self._pass, None
        return iterate(self._batches) if begun is None else begun

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def first(self) -> Any:
        return None if self._pass is None else self._pass.first


class _BegunPass(Iterator[Any]):
    """A pass whose first batch was looked at."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.first = next(batches, None)
        self._rest = batches if self.first is None else chain([self.first], batches)

    def __next__(self) -> Any:
        return next(self._rest)


def _begun(batches: Any) -> Any:
    return _BegunPass(batches) if isinstance(batches, Iterator) else _Begun(batches)


def _by_number(batches: Any) -> bool:
    return hasattr(batches, "numbered")


def _first(batches: Any) -> Any:
    """Return the first batch, of those that are made by number the first that can be made."""
    if _by_number(batches):
        return next((batch for batch in batches.numbered(range(len(batches))) if batch is not None), None)
    return next(iter(batches), None) if isinstance(batches, Sequence) else batches.first


def _one(batch: Any) -> Any:
    """Return the first sample of a batch, where each of its tensors has samples in a row; else the whole batch."""
    if not isinstance(batch, Mapping):
        return batch
    sizes = {len(value) if value.dim() else 0 for value in batch.values() if isinstance(value, Tensor)}
    alike = len(sizes) == 1 and all(isinstance(value, Tensor) for value in batch.values())
    return {name: value[:1] for name, value in batch.items()} if alike and max(sizes) > 1 else batch
