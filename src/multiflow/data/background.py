"""Making batches ahead of their use, in background processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


def make_ahead(make: Callable[[int], Value], numbers: Iterable[int], workers: int) -> Iterator[Value]:
    """Yield ``make(number)`` for one number after the other.

    Args:
        make: a function that can be pickled where processes cannot be forked; its errors had better be values.
        numbers: of what is to be made.
        workers: processes that make two ahead each; 0 = this one makes each when it is asked for.

    >>> list(make_ahead(abs, [-2, 3, -4], workers=0))
    [2, 3, 4]
    """
    if not workers:
        yield from map(make, numbers)
        return
    from torch.utils.data import DataLoader

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    source, order = cast("Any", _ByNumber(make)), cast("Any", numbers)
    yield from DataLoader(source, sampler=order, batch_size=None, num_workers=workers, collate_fn=_as_it_is)


@dataclass(frozen=True)
class _ByNumber:
    """What is made, as the DataLoader asks for it."""

    make: Callable[[int], Any]

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def _as_it_is(made: Any) -> Any:
    return made
