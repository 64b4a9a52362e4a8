"""Exact order statistics over many tensors, without sorting or concatenating them.

Which weights are the ``k`` smallest of hundreds of millions is decided in two looks. A sample gives a narrow bracket
that holds the k-th smallest value almost surely; one pass then counts what lies below the bracket and gathers the few
values inside it, where the exact answer is found. A bracket that misses is widened, so the result never depends on
the sample. Equal values are told apart by position: tensor order first, then row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import in_parallel

Array: TypeAlias = Any  # numpy on the CPU, where it is several times faster than torch at this; torch elsewhere

SAMPLE = 1 << 15  # values looked at to place the bracket
WIDTH = 4.0  # standard deviations on either side of the expected rank


@dataclass(frozen=True, slots=True)
class Cut:
    """The border below which the smallest values lie."""

    value: float  # the ``count``-th smallest value; everything below it is dropped
    drops: tuple[int, ...]  # how many values each tensor drops, ties at ``value`` going to the earlier tensors first


def flat(tensor: Tensor) -> Array:
    """View a tensor as one row of numbers, as numpy where it lies on the CPU."""
    row = tensor.detach().reshape(-1)
    return row.numpy() if row.device.type == "cpu" else row


def count_true(flags: Array) -> int:
    return int(np.count_nonzero(flags) if isinstance(flags, np.ndarray) else torch.count_nonzero(flags))


def smallest(tensors: Sequence[Callable[[], Tensor]], sizes: Sequence[int], counts: Sequence[int]) -> list[Cut]:
    """Find, for each count, the border of that many smallest values over all tensors together.

    Args:
        tensors: functions that give the tensors; each is called once for the sample and once or more for the count,
            so that tensors can be computed when looked at and need not all exist at once.
        sizes: number of values in each tensor.
        counts: how many values to drop in all; one cut is found for each, sharing the passes.

    >>> smallest([lambda: torch.tensor([3.0, 1.0]), lambda: torch.tensor([1.0, 2.0])], [2, 2], [1, 3])
    [Cut(value=1.0, drops=(1, 0)), Cut(value=2.0, drops=(1, 2))]

    Raises:
        MultiflowError: a value is NaN.
    """
    total = sum(sizes)
    found: dict[int, Cut] = {0: Cut(-math.inf, (0,) * len(sizes)), total: Cut(math.inf, tuple(sizes))}
    pending = sorted({count for count in counts if count not in found})
    if any(not 0 <= count <= total for count in counts):
        raise ValueError(f"counts {list(counts)} must lie between 0 and the {total} values there are")
    sample = _sample(tensors, sizes, total) if pending and total > SAMPLE else np.empty(0, np.float32)
    width = WIDTH
    while pending:
        brackets = [_bracket(sample, count / total, width) for count in pending]
        looks = list(in_parallel(partial(_look_at, brackets), tensors))
        for i, count in enumerate(pending):
            cut = _resolve(brackets[i], [look[i] for look in looks], count)
            if cut is not None:
                found[count] = cut
        pending = [count for count in pending if count not in found]
        width *= 16
    return [found[count] for count in counts]


def _sample(tensors: Sequence[Callable[[], Tensor]], sizes: Sequence[int], total: int) -> np.ndarray:
    """Take about `SAMPLE` values, spread over all tensors in proportion to their sizes, and sort them."""

    def take(tensor: Callable[[], Tensor], size: int) -> np.ndarray:
        row, index = flat(tensor()), _spread(min(size, math.ceil(SAMPLE * size / total)), size)
        return (
            row.take(index)
            if isinstance(row, np.ndarray)
            else row[torch.from_numpy(index).to(row.device)].cpu().numpy()
        )

    return np.sort(np.concatenate(list(in_parallel(lambda pair: take(*pair), zip(tensors, sizes, strict=True)))))


@lru_cache(maxsize=16)
def _spread(count: int, size: int) -> np.ndarray:
    """Spread positions evenly over a row: multiples of the golden ratio, which are blind to rows and columns."""
    return (np.arange(count, dtype=np.float64) * 0.6180339887498949 % 1 * size).astype(np.int64)


def _bracket(sample: np.ndarray, share: float, width: float) -> tuple[float, float]:
    """Two values between which the quantile at ``share`` lies, unless the sample is unlucky."""
    spread = width * math.sqrt(len(sample) * share * (1 - share)) + width
    low, high = math.floor(share * len(sample) - spread), math.ceil(share * len(sample) + spread)
    return (
        float(sample[low]) if low >= 0 else -math.inf,
        float(sample[high]) if high < len(sample) else math.inf,
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What one tensor holds below a bracket, on its two ends, and (the values themselves) strictly inside."""

    below: int
    at_low: int
    inside: np.ndarray
    at_high: int


def _look_at(brackets: Sequence[tuple[float, float]], tensor: Callable[[], Tensor]) -> list[_Look]:
    """Look at one tensor: one comparison with each end, one gathering of what lies in any of the brackets."""
    row = flat(tensor())
    below: list[int] = []
    near = row != row  # nothing yet, unless a value is NaN
    for low, high in brackets:
        inside = row >= low
        below.append(len(row) - count_true(inside))
        inside &= row <= high
        near |= inside
    values = row.take(np.flatnonzero(near)) if isinstance(row, np.ndarray) else row[near].cpu().numpy()
    if np.isnan(values).any():
        raise MultiflowError("some of the values to rank are NaN; look for NaN in the model's weights")
    return [
        _Look(
            under,
            count_true(values == low),
            values[(values > low) & (values < high)],
            count_true(values == high) if high != low else 0,
        )
        for under, (low, high) in zip(below, brackets, strict=True)
    ]


def _resolve(bracket: tuple[float, float], looks: Sequence[_Look], count: int) -> Cut | None:
    """Find the ``count``-th smallest value from the looks, or None when it lies outside the bracket."""
    rank = count - sum(look.below for look in looks)
    if rank <= 0:
        return None
    at_low = sum(look.at_low for look in looks)
    if rank <= at_low:
        return _cut(bracket[0], [look.below for look in looks], [look.at_low for look in looks], rank)
    rank -= at_low
    under = [look.below + look.at_low for look in looks]
    inside = np.concatenate([look.inside for look in looks])
    if rank <= len(inside):
        value = np.partition(inside, rank - 1)[rank - 1]
        less = [int(np.count_nonzero(look.inside < value)) for look in looks]
        same = [int(np.count_nonzero(look.inside == value)) for look in looks]
        return _cut(float(value), [u + n for u, n in zip(under, less, strict=True)], same, rank - sum(less))
    rank -= len(inside)
    if rank <= sum(look.at_high for look in looks):
        under = [u + len(look.inside) for u, look in zip(under, looks, strict=True)]
        return _cut(bracket[1], under, [look.at_high for look in looks], rank)
    return None


def _cut(value: float, below: Sequence[int], equal: Sequence[int], ties: int) -> Cut:
    """Share ``ties`` values equal to the border out among the tensors, the earlier ones first."""
    drops = []
    for under, same in zip(below, equal, strict=True):
        taken = min(same, ties)
        ties -= taken
        drops.append(under + taken)
    return Cut(value, tuple(drops))
