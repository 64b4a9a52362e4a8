"""Which batches a process takes: of every round, of as many batches as there are processes, the one at its rank.

One process takes them all, a round a batch. All processes go through the rounds together, the last and smaller one
included, so that they come to every exchange equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.ranks import Ended, exchange, rank, world

ELSEWHERE = object()
"""In place of a batch that is not made in this process."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch for each process.

    Args:
        done: number of batches that are done when the round is, over all processes.
        own: number (from 1) and batch of the one taken here, or nothing: the last round may be smaller.
        takers: how many processes have one.
        behind: how many parts of a batch another process has more than this one.
    """

    done: int
    own: tuple[tuple[int, Any], ...]
    takers: int
    behind: int


def turns(batches: Iterable[Any], first: int = 0, split: Callable[[Any], list[Any]] | None = None) -> Iterator[Turn]:
    """Yield the rounds after the first ``first`` batches; ``split`` gives the parts of a batch.

    Raises:
        MultiflowError: no batches, or fewer than ``first``; or the processes have different numbers of them.

    >>> [(turn.done, turn.own) for turn in turns(["a", "b"])]
    [(1, ((1, 'a'),)), (2, ((2, 'b'),))]
    """
    size, mine, number = world(), rank(), 0
    own: tuple[tuple[int, Any], ...] = ()

    def finish() -> Turn:
        parts = sum(len(split(batch)) if split else 1 for _, batch in own)
        everyone = exchange("batches", (number, parts))
        if len({done for done, _ in everyone}) > 1:
            raise Ended(
                f"the processes have different numbers of batches, {' and '.join(str(done) for done, _ in everyone)}; "
                "give every process all of them, in the same order"
            )
        most, takers = max(of for _, of in everyone), sum(of > 0 for _, of in everyone)
        return Turn(number, own, takers, most - parts)

    for number, batch in enumerate(batches, start=1):
        if (number - 1) % size == mine and batch is not ELSEWHERE:
            own = ((number, batch),)
        if number % size == 0:
            turn = finish()
            own = ()
            if number > first:
                yield turn
    if number % size:
        turn = finish()
        if number > first:
            yield turn
    check_some(number, first)


def check_some(done: int, first: int) -> None:
    """Refuse data without batches, and data with fewer batches than a checkpoint comes from."""
    if done == 0:
        raise MultiflowError(
            "there are no calibration batches: the data are empty, or a generator that was used up before; "
            "pass a list or another iterable that can be iterated again"
        )
    if done < first:
        raise MultiflowError(
            f"the checkpoint comes from {first} batches, but the data hold {done}; use the data it began with, "
            "or delete the checkpoint to begin afresh"
        )


def by_number(batches: Any) -> bool:
    """Whether each process is to have only its own batches made: there are several, and these can be made by number."""
    return world() > 1 and hasattr(batches, "numbered")


def deal(batches: Any, each: int, taken: int = 0) -> Iterator[Any]:
    """Go through batches ``each`` at a time, after the last one from the beginning again, making only one's own.

    Args:
        batches: has a length, and ``numbered(numbers)``, which yields the batches with these numbers (from 0), None for
            one that cannot be made.
        each: batches of a step; the first of every step is that of process 0.
        taken: batches of the steps before.
    """
    total, mine, size = len(batches), rank(), world()
    if not total:
        return
    own = (at % total for start in count(taken, each) for at in range(start + mine, start + each, size))
    made = iter(batches.numbered(own))
    for place in count():
        batch = next(made) if place % each % size == mine else None
        yield ELSEWHERE if batch is None else batch
