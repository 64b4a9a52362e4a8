"""Layers that a model runs for nothing are left out of the budget, and said.

The vision tower of a language model often runs to its end although a state before that is taken; poolers and heads of a
tower run inside of models that never read them. Half of such a layer's weights would count as pruned, and nobody would
notice. A few samples show which layers they are, see `multiflow.calibration.reach`: the first and the last one of the
first batches, for what one sample leaves aside (an expert, a branch for texts alone) another may reach.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from multiflow.base.adapter import Adapter, layer_paths, parts, regex_of
from multiflow.base.offload import input_device
from multiflow.base.types import Layout
from multiflow.calibration import Stats, iterate, to_device, unused_layers

MOST = 8
"""Batches that are looked at, where there are layers that none has used yet."""
UNUSED = "never used: nothing of the output depends on it"
"""Why such a layer stays dense, in `Adapter.dense`."""


def spare_unused(
    model: nn.Module, adapter: Adapter, batches: Iterable[Any] | Stats | None
) -> tuple[Adapter, Iterable[Any] | Stats | None]:
    """Leave out layers on which the output does not depend, where an adapter asks for that; a warning names them.

    Args:
        model: is run on some samples, and left as it was.
        adapter: that of the model; with ``spares_unused`` off nothing is done.
        batches: of which some are looked at; statistics know what was left out when they were measured.

    Returns:
        The adapter, with these layers among its dense ones, and the batches, those that were looked at included.
    """
    if not adapter.spares_unused or batches is None:
        return adapter, batches
    layout = adapter.layout(model)
    if isinstance(batches, Stats):
        names = tuple(name for name in batches.unused if name in layout)
    else:
        batches = batches if _by_number(batches) or isinstance(batches, Sequence) else _begun(batches)
        names = find_unused(model, adapter, layout, _some(batches))
        if names:
            warnings.warn(said(layout, names), stacklevel=3)
    return left_out(model, adapter, layout, names), batches


def find_unused(model: nn.Module, adapter: Adapter, layout: Layout, batches: Iterable[Any]) -> tuple[str, ...]:
    """Return the layers of which nothing in the output depends, by two samples of each batch; none without batches."""
    device = input_device(model)
    samples = (to_device(one, device) for batch in batches for part in parts(batch) for one in _ends(part))
    return unused_layers(model, layout, samples, adapter.forward)


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

    def ahead(self) -> Iterator[Any]:
        return iter(()) if self._pass is None else self._pass.ahead()


class _BegunPass(Iterator[Any]):
    """A pass whose first batches can be looked at."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._rest, self._seen = batches, deque[Any]()
        self._failed: Exception | None = None

    def __next__(self) -> Any:
        if self._seen:
            return self._seen.popleft()
        if self._failed is not None:
            raise self._failed
        return next(self._rest)

    def ahead(self) -> Iterator[Any]:
        """Give the next batches, which stay to come; they are held until then, and so is the error that ends them."""
        try:
            for batch in self._rest:
                self._seen.append(batch)
                yield batch
        except Exception as error:
            self._failed = error


def _begun(batches: Any) -> Any:
    return _BegunPass(batches) if isinstance(batches, Iterator) else _Begun(batches)


def _by_number(batches: Any) -> bool:
    return hasattr(batches, "numbered")


def _some(batches: Any) -> Iterator[Any]:
    """Give some batches: where each has a number, of all of them, else the first ones."""
    if not _by_number(batches) and not isinstance(batches, Sequence):
        return islice((batch for batch in batches.ahead() if batch is not None), MOST)
    numbers = range(0, len(batches), max(1, len(batches) // MOST))
    some = batches.numbered(numbers) if _by_number(batches) else (batches[number] for number in numbers)
    return islice((batch for batch in some if batch is not None), MOST)


def _ends(batch: Any) -> list[Any]:
    """Return the first and the last sample of a batch, if each of its tensors has samples in a row; else the batch."""
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        return [batch]
    sizes = {len(value) if value.dim() else 0 for value in batch.values()}
    if len(sizes) != 1 or max(sizes) < 2:
        return [batch]
    return [{name: value[at] for name, value in batch.items()} for at in (slice(None, 1), slice(-1, None))]
