"""Batches taken a few at a time, from the beginning again when they are spent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from multiflow.calibration.collect import iterate, length
from multiflow.calibration.turns import by_number, check_some, deal

END = object()


class Cycle:
    """An iterable of batches as steps use it up.

    Args:
        batches: any iterable that can be iterated again.
        each: batches of a step.
        taken: batches of the steps before.

    >>> cycle = Cycle(["a", "b", "c"], each=2)
    >>> list(cycle.take()), list(cycle.take()), list(Cycle(["a", "b"], each=9).take())
    (['a', 'b'], ['c', 'a'], ['a', 'b'])
    """

    def __init__(self, batches: Iterable[Any], each: int, taken: int = 0) -> None:
        self.taken = 0
        self._batches, self._iterator = batches, iterate(batches)
        self._each, self._length = each, length(batches) or None
        self._in_pass = 0  # batches of this pass so far
        if by_number(batches):
            self._each, self.taken = min(each, len(batches)), taken  # type: ignore[arg-type]
            self._iterator = deal(batches, self._each, taken)
            return
        for _ in range(taken):
            self._next()

    def take(self) -> Iterator[Any]:
        """Yield the batches of a step, or as many as there are: none comes twice."""
        for done in range(self._each):
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
