"""How masks settle while a calibration goes on: each doubling of the data against the half of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doubling:
    """How far the masks after some batches agree with those of half as many.

    Args:
        batches: after how many the masks were made.
        before: after how many those they are compared with; more than half where the data end between two doublings.
        agreement: sparsity -> share of the weights kept by the former that the latter keep as well.
        samples: how many samples the batches hold, where that can be counted.
    """

    batches: int
    before: int
    agreement: Mapping[float, float]
    samples: int | None = None


def is_stable(curve: Sequence[Doubling], threshold: float) -> bool:
    """Whether the last point of a curve is a doubling after which the masks agree well enough at every sparsity.

    >>> is_stable([Doubling(2, 1, {0.5: 0.9}), Doubling(4, 2, {0.5: 0.996})], 0.995)
    True
    >>> is_stable([Doubling(5, 4, {0.5: 0.996})], 0.995)    # the data ended before their second doubling
    False
    """
    if not curve:
        return False
    last = curve[-1]
    return last.batches >= 2 * last.before and min(last.agreement.values()) >= threshold
