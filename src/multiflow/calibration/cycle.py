"""Batches taken a few at a time, from the beginning again when they are spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from multiflow.calibration.collect import check_some, iterate, length

END = object()


class Cycle:
    """An iterable of batches as steps use it up.

    >>> cycle = Cycle(["a", "b", "c"])
    >>> list(cycle.take(2)), list(cycle.take(2)), list(cycle.take(9))
    (['a', 'b'], ['c', 'a'], ['b', 'c', 'a'])
    """

    def __init__(self, batches: Iterable[Any], taken: int = 0) -> None:
        self.taken = 0
        self._batches, self._iterator = batches, iterate(batches)
        self._in_pass = 0  # batches of this pass so far
        self._length = length(batches)
        for _ in range(taken):
            self._next()

    def take(self, count: int) -> Iterator[Any]:
        """Yield the next ``count`` batches, or as many as there are: none comes twice."""
        for done in range(count):
            if done == self._length:
                return
            batch = self._next(done)
            if batch is END:
                return
            yield batch

    def _next(self, done: int = 0) -> Any:
        """Return the next batch, or `END` if this very run has seen them all."""
        batch = next(self._iterator, END)
        if batch is END:
            self._length = self._in_pass or None
            if done and done == self._length:
                return END
            self._iterator, self._in_pass = iterate(self._batches), 0
            batch = next(self._iterator, END)
            check_some(int(batch is not END), 0)
        self._in_pass += 1
        self.taken += 1
        return batch
