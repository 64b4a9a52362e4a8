"""Selection: which weights of a layer go, once their number is known.

Always exactly that many; among equal scores the earlier one in row-major order goes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from multiflow.base.order import Array, flat, smallest
from multiflow.base.types import NofM, Pattern, PerRow

PAIRWISE = 16  # up to this block length comparing all pairs is the fastest


def select(scores: Tensor, counts: Sequence[int], pattern: Pattern) -> list[Tensor]:
    """Choose the weights that a layer keeps, for each of several budgets.

    Args:
        scores: ``(out, in)``, finite; low scores go.
        counts: how many weights to drop in all, a number that the pattern can drop.
        pattern: which weights may go together.

    Returns:
        One bool CPU tensor ``(out, in)`` for each count, True = kept.
    """
    if isinstance(pattern, NofM):
        return [_n_of_m(scores, pattern)] * len(counts)
    if isinstance(pattern, PerRow):
        return [_per_row(scores, count // max(scores.shape[0], 1)) for count in counts]
    cuts = smallest([lambda: scores], [scores.numel()], counts)
    return [keep_above(scores, cut.value, count) for cut, count in zip(cuts, counts, strict=True)]


def keep_above(scores: Tensor, value: float, count: int) -> Tensor:
    """Keep what lies above a border, and of the values at the border all but the first that must go.

    Args:
        scores: ``(out, in)``.
        value: the border, such that ``count`` scores lie below it or at it.
        count: how many go.
    """
    row: Array = flat(scores)
    kept = row > value
    excess = len(row) - count - int(kept.sum() if isinstance(kept, Tensor) else np.count_nonzero(kept))
    if excess:  # values at the border that stay: the last ones
        border = torch.nonzero(row == value).flatten() if isinstance(row, Tensor) else np.flatnonzero(row == value)
        kept[border[len(border) - excess :]] = True
    return (kept.cpu() if isinstance(kept, Tensor) else torch.from_numpy(kept)).view(scores.shape)


def _per_row(scores: Tensor, count: int) -> Tensor:
    """Drop the ``count`` lowest scores of every row."""
    mask = torch.ones(scores.shape, dtype=torch.bool)
    if count == 0:
        return mask
    if count == scores.shape[1]:
        return ~mask
    if not scores.is_cpu:
        return _rows_above(scores.detach(), count).cpu()
    values = scores.detach().numpy()
    border = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    kept = values > border
    excess = scores.shape[1] - count - np.count_nonzero(kept, axis=1)
    rows = np.flatnonzero(excess)  # those with ties at the border, of which the last stay
    ties = values[rows] == border[rows]
    later = np.cumsum(ties[:, ::-1], axis=1, dtype=np.int32)[:, ::-1]  # ties from here on, this one included
    kept[rows] |= ties & (later <= excess[rows, None])
    return torch.from_numpy(kept)


def _rows_above(values: Tensor, count: int) -> Tensor:
    """Do the same where the scores are, with torch."""
    border = values.kthvalue(count, dim=1, keepdim=True).values
    kept, ties = values > border, values == border
    later = ties.flip(1).cumsum(1, dtype=torch.int32).flip(1)
    return kept | ties & (later <= values.shape[1] - count - kept.sum(1, keepdim=True))


def _n_of_m(scores: Tensor, pattern: NofM) -> Tensor:
    """Keep the ``keep`` highest of every ``of`` consecutive scores, by counting for each how many go before it."""
    if pattern.of > PAIRWISE:
        return _per_row(scores.reshape(-1, pattern.of), pattern.of - pattern.keep).view(scores.shape)
    blocks = scores.detach().reshape(-1, pattern.of).T.contiguous()
    before = torch.zeros(blocks.shape, dtype=torch.uint8, device=scores.device)
    for i in range(pattern.of):
        for j in range(i + 1, pattern.of):
            first = blocks[i] <= blocks[j]
            before[j] += first
            before[i] += ~first
    return (before >= pattern.of - pattern.keep).T.reshape(scores.shape).cpu()


def pack(mask: Tensor) -> np.ndarray:
    """Pack a bool tensor into bytes, row-major, first entry in the highest bit."""
    return np.packbits(mask.cpu().contiguous().numpy())


def unpack(packed: np.ndarray, size: int) -> Tensor:
    """Return the bool tensor ``(size,)`` that was packed."""
    return torch.from_numpy(np.unpackbits(packed, count=size).view(np.bool_))
