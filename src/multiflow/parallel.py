"""Work on many layers at once, with as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` of every item, in order; numpy and torch let go of Python's lock while they compute.

    >>> list(in_parallel(abs, [-1, 2]))
    [1, 2]
    """
    work, threads = list(items), torch.get_num_threads()
    if len(work) < 2 or threads < 2:
        yield from map(function, work)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, work)
    finally:
        pool.shutdown(cancel_futures=True)
