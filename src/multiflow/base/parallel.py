"""Work on many layers at once, with as many threads as torch uses, up to a few.

Every layer in flight holds memory of its own. On a GPU layers take turns: it computes one thing after the other anyway,
and torch sets up its linear algebra there by one thread alone (a second one at the same time is an error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
MOST = 8  # threads


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` of every item, in order; numpy and torch let go of Python's lock while they compute.

    >>> list(in_parallel(abs, [-1, 2]))
    [1, 2]
    """
    work = list(items)
    threads = 1 if torch.cuda.is_initialized() else min(torch.get_num_threads(), MOST)  # what has no GPU leaves it be
    if len(work) < 2 or threads < 2:
        yield from map(function, work)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, work)
    finally:
        pool.shutdown(cancel_futures=True)
