"""How far two masks of the same layers agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.masks.masks import Masks


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two masks agree on some layers."""

    size: int  # weights compared
    same: int  # weights on which both decide alike
    both: int  # weights that both keep
    either: int  # weights that at least one keeps

    @property
    def agreement(self) -> float:
        """Share of all weights on which both decide alike."""
        return self.same / self.size

    @property
    def overlap(self) -> float:
        """Weights kept by both, as a share of those kept by either (intersection over union)."""
        return self.both / self.either if self.either else 1.0


def compare(first: Masks, second: Masks) -> dict[str, Agreement]:
    """Compare two masks layer by layer; masks of different layers are an error that names the first difference."""
    for a, b in zip(first.layout.layers, second.layout.layers, strict=False):
        if (a.name, a.shape) != (b.name, b.shape):
            raise MultiflowError(f"the masks cover different layers: '{a.name}' {a.shape} against '{b.name}' {b.shape}")
    if len(first) != len(second):
        raise MultiflowError(f"the masks cover different layers: {len(first)} layers against {len(second)}")
    return {name: _compare(first.packed[name], second.packed[name], first.layout[name].size) for name in first}


def total(parts: Sequence[Agreement]) -> Agreement:
    return Agreement(*(sum(getattr(part, name) for part in parts) for name in ("size", "same", "both", "either")))


def by_group(first: Masks, second: Masks) -> dict[str, Agreement]:
    layers = compare(first, second)
    return {group: total([layers[layer.name] for layer in of]) for group, of in first.layout.groups.items()}


def _compare(first: np.ndarray, second: np.ndarray, size: int) -> Agreement:
    differ = int(np.bitwise_count(first ^ second).sum(dtype=np.int64))
    both = int(np.bitwise_count(first & second).sum(dtype=np.int64))
    return Agreement(size, size - differ, both, both + differ)
