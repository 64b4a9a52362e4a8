"""Shares of right answers: recall of ranked lists, top-1 of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError


def recall(ranks: Int[Tensor, " queries"], ks: Sequence[int] = (1, 5, 10)) -> tuple[float, ...]:
    """Return for each ``k`` the share of the queries, in percent, that found a right answer among their first ``k``.

    Args:
        ranks: place of the best right answer of each query, counted from 0; any large number = not found.
        ks: how many answers are looked at.

    Raises:
        MultiflowError: there are no queries.

    >>> recall(torch.tensor([0, 4, 5, 100]))
    (25.0, 50.0, 75.0)
    """
    if ranks.ndim != 1 or not len(ranks):
        raise MultiflowError(f"ranks of shape {tuple(ranks.shape)} were given; expected one rank per query")
    return tuple(100 * int((ranks < k).sum()) / len(ranks) for k in ks)


def top1(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Return the share of the images, in percent, whose highest logit (the first of equals) is that of their class.

    Raises:
        MultiflowError: there are no images, or the shapes do not fit.

    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    50.0
    """
    if logits.ndim != 2 or not len(logits) or labels.shape != logits.shape[:1]:
        raise MultiflowError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} were given; "
            "expected (images, classes) and (images,)"
        )
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)
