"""Batches: which of them a process takes, a few at a time or all, and where their tensors are.

Of every round, of as many batches as there are processes, a process takes the one at its rank. One process takes them
all, a round a batch. All processes go through the rounds together, the last and smaller one included, so that they come
to every exchange equally often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import Ended, exchange, rank, world

ELSEWHERE = object()
"""In place of a batch that is not made in this process."""
END = object()


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch for each process."""

    done: int  # number of batches that are done when the round is, over all processes
    # number (from 1) and batch of the one taken here, or nothing: the last round may be smaller
    own: tuple[tuple[int, Any], ...]
    takers: int  # how many processes have one
    behind: int  # how many parts of a batch another process has more than this one


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
        if batch is None:
            raise MultiflowError(f"batch {number} is None; expected a dict, a tuple or a tensor")
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


def length(batches: Any) -> int | None:
    """How many batches there are, where that is known (a loader of a stream has a ``__len__`` that fails)."""
    try:
        return len(batches)
    except TypeError:
        return None


def iterate(batches: Any) -> Iterator[Any]:
    """Iterate over batches, or say that this is no iterable of batches."""
    if isinstance(batches, str | bytes | Mapping | Tensor) or not isinstance(batches, Iterable):
        raise MultiflowError(
            f"batches is a {type(batches).__name__}; expected an iterable of batches, such as a list or a DataLoader"
        )
    if by_number(batches):
        total = len(batches)  # type: ignore[arg-type]
        return islice(deal(batches, total), total)
    return iter(batches)


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, nested in mappings, lists, tuples and dataclasses, to a device.

    Arrays of numbers become tensors; what else there is, such as None, stays.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value if value.flags.writeable else value.copy())
    if isinstance(value, Tensor):
        moved = value.to(device)
        # a gradient cannot be taken through tensors that were made in inference mode
        return moved.clone() if moved.is_inference() and torch.is_grad_enabled() else moved
    if is_dataclass(value) and not isinstance(value, type | Mapping):
        twin = copy(value)
        for field in fields(value):
            object.__setattr__(twin, field.name, to_device(getattr(value, field.name), device))
        return twin
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = (to_device(item, device) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def form(value: Any) -> Any:
    """Give the form of a batch: its names, types and numbers of dimensions, but no sizes other than 0."""
    if isinstance(value, Tensor):
        return value.dtype, value.dim(), value.numel() == 0
    if isinstance(value, Mapping):
        return tuple((str(key), form(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(form, value))
    if is_dataclass(value) and not isinstance(value, type):
        return tuple((field.name, form(getattr(value, field.name))) for field in fields(value))
    return value if isinstance(value, bool | None) else type(value).__name__


def is_empty(value: Any) -> bool:
    """Whether a batch holds tensors, and all of them are of size 0."""
    sizes: list[int] = []

    def look(part: Any) -> None:
        if isinstance(part, Tensor | np.ndarray):
            sizes.append(part.numel() if isinstance(part, Tensor) else part.size)
        elif isinstance(part, Mapping | list | tuple):
            for item in part.values() if isinstance(part, Mapping) else part:
                look(item)
        elif is_dataclass(part) and not isinstance(part, type):
            look([getattr(part, field.name) for field in fields(part)])

    look(value)
    return bool(sizes) and not any(sizes)


@contextmanager
def missing_keys_named(part: Any, batch: int) -> Iterator[None]:
    """Turn the error of a batch that lacks a key, or holds unknown tokens, into a sentence; number what it says."""
    try:
        yield
    except MultiflowError as error:
        said, numbered = str(error), re.sub(r"^(a|the) batch\b", f"batch {batch}", str(error))
        if numbered == said:
            raise
        raise type(error)(numbered) from error
    except IndexError as error:
        if "index out of range in self" not in str(error):  # what torch says of an embedding
            raise
        raise MultiflowError(
            f"batch {batch} holds numbers of tokens for which the model has no embedding; make it with the tokenizer "
            "or processor that belongs to the model"
        ) from error
    except KeyError as error:
        key = error.args[0] if error.args else None
        if not isinstance(part, Mapping) or key in part:
            raise
        if not (isinstance(key, str) and key.isidentifier()):  # a table of the model's own, in which something lacks
            said = " ".join(str(key).split()).rstrip(".")
            raise MultiflowError(
                f"the model cannot take batch {batch}: {said}; make it with the processor that belongs to the model"
            ) from error
        has = ", ".join(map(str, part)) or "nothing"
        raise MultiflowError(f"batch {batch} has no '{key}', which the adapter needs; it has: {has}") from error
