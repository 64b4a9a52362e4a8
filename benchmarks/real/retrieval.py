"""Finding one among many, item by item: what all picture and sentence worlds measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hits(queries: Tensor, answers: Tensor, k: int = 1) -> list[float]:
    """Return for each query 100 if its own answer, that of its number, is among its first ``k``; a tie counts behind.

    Args:
        queries: unit vectors (items, width).
        answers: unit vectors of the same number.
        k: how many answers are looked at.
    """
    similar = queries @ answers.T
    own = similar.diag()[:, None]
    others = similar.masked_fill(torch.eye(len(queries), dtype=torch.bool), -torch.inf)
    found = (others >= own).sum(1) < k
    return (100.0 * (found & own[:, 0].isfinite())).tolist()


def both_ways(one: Tensor, other: Tensor, k: int = 1) -> list[float]:
    """Return of each item the mean of its hits in both directions."""
    return [(a + b) / 2 for a, b in zip(hits(one, other, k), hits(other, one, k), strict=True)]


def classified(images: Tensor, classes: Tensor, labels: Sequence[int]) -> list[float]:
    """Return for each image 100 if the nearest class is its own.

    Args:
        images: unit vectors (images, width).
        classes: unit vectors (classes, width).
        labels: number of the class of each image.
    """
    similar = images @ classes.T
    right = similar.nan_to_num(nan=-2.0).argmax(1) == torch.tensor(labels)
    return (100.0 * (right & similar.isfinite().all(1))).tolist()
