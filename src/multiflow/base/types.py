"""The small frozen values through which the middle packages meet.

A *layer* is one distinct prunable weight, a *layout* is the ordered layers of a model, a *budget* says how many
weights each layer drops, and a *pattern* says which sets of weights a layer may drop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NewType, TypeAlias

from multiflow.base.errors import MultiflowError

MOST_BLOCK = 64  # M of the N:M patterns whose sparsities are written short
Budget = NewType("Budget", dict[str, int])
"""Layer name -> number of weights to drop, in layout order."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One distinct prunable weight.

    Args:
        name: module path of the first module that uses the weight (no ``.weight``).
        shape: ``(out_features, in_features)``.
        group: ``vision``, ``text``, ``fusion`` or a name of your own.
        stream: whose padding mask the layer's input follows (``text``, ``image``), or None when nothing is padded.
        aliases: paths of the other modules that share the weight.
    """

    name: str
    shape: tuple[int, int]
    group: str
    stream: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of every module that uses the weight, the layer's own name first."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Layout(Mapping[str, Layer]):
    """The layers of a model, in module order: a mapping from layer name to `Layer`."""

    layers: tuple[Layer, ...]
    _by_name: dict[str, Layer] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {layer.name: layer for layer in self.layers})

    def __repr__(self) -> str:
        groups = ", ".join(f"{group} {len(layers)}" for group, layers in self.groups.items())
        return f"Layout({len(self)} layers, {self.size:,} weights: {groups or 'none'})"

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
