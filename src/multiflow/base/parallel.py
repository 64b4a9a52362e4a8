"""Work in parallel: layers on the threads of one process, and batches on several processes.

Every layer in flight holds memory of its own. On a GPU layers take turns: it computes one thing after the other anyway,
and torch sets up its linear algebra there by one thread alone (a second one at the same time is an error).

The processes are those of torch's default process group, which ``torchrun`` or the caller sets up; without one, or with
a single process, nothing here does anything. Each takes its share of the batches, and all come to the same result.
Every communication begins with an `exchange` of words, and a process that fails answers the next one with its error:
nobody waits for somebody who will not come.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from multiflow.base.errors import MultiflowError

T = TypeVar("T")
R = TypeVar("R")
MOST = 8  # threads


def thread_count() -> int:
    """Return on how many threads `in_parallel` works."""
    return 1 if torch.cuda.is_initialized() else min(torch.get_num_threads(), MOST)  # what has no GPU leaves it be


def in_parallel(
    function: Callable[[T], R], items: Iterable[T], *, most: int | None = None, share: bool = False
) -> Iterator[R]:
    """Yield ``function(item)`` of every item, in order; numpy and torch let go of Python's lock while they compute.

    Args:
        function: of one item.
        items: all of them.
        most: threads, at most.
        share: whether torch's own threads are shared out among these, for functions that compute long: two cores that
            work on two layers are faster than two that work on each layer together.

    >>> list(in_parallel(abs, [-1, 2]))
    [1, 2]
    """
    work = list(items)
    threads = min(thread_count(), most or MOST)
    if len(work) < 2 or threads < 2:
        yield from map(function, work)
        return
    inside = torch.get_num_threads()
    begin = partial(torch.set_num_threads, max(1, inside // threads)) if share else None
    pool = ThreadPoolExecutor(threads, initializer=begin)
    try:
        yield from pool.map(function, work)
    finally:
        pool.shutdown(cancel_futures=True)
        if share:
            torch.set_num_threads(inside)  # the number that threads begin with is one for the whole process


FAILED = "failed"
_inside: ContextVar[bool] = ContextVar("inside together()", default=False)


class Ended(MultiflowError):
    """The run has ended on all processes, for the reason that the message gives."""


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def leave(code: int = 0) -> NoReturn:
    """End this process, one of several, at once with an exit code.

    Caches inside torch keep the group of a model that was split among processes, and its threads: a process that leaves
    the usual way, with exit handlers, sometimes aborts in the end with all its work done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exchange(what: str, value: Any = None) -> list[Any]:
    """Tell all processes a value; return those of all, in the order of their ranks.

    Args:
        what: what the value is, the same on all processes.
        value: anything that can be pickled.

    Raises:
        MultiflowError: another process has failed (the message is its own), is gone, or is at another point of the run.
    """
    if world() == 1:
        return [value]
    words: list[Any] = [None] * world()
    with _naming_lost():
        dist.all_gather_object(words, (what, value))
    for said, error in words:
        if said == FAILED:
            raise Ended(error)
    if len({said for said, _ in words}) > 1:
        where = ", ".join(f"process {at} at '{said}'" for at, (said, _) in enumerate(words))
        raise Ended(
            f"the processes are out of step ({where}); make the same calls with the same batches in all of them"
        )
    return [value for _, value in words]


@contextmanager
def together() -> Iterator[None]:
    """End this block on all processes with one error if it fails on any; leave it when all have come to its end.

    A block inside another one leaves that to the outer one. Works as a decorator too.
    """
    if world() == 1 or _inside.get():
        yield
        return
    token = _inside.set(True)
    try:
        yield
        exchange("end")
    except Exception as error:
        if not _is_known(error):
            said = f"process {rank()} failed: {type(error).__name__}: {error}"
            with suppress(Ended):
                exchange(FAILED, str(error) if isinstance(error, MultiflowError) else said)
        raise
    finally:
        _inside.reset(token)


def agree(settings: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings; those that differ are named in an error on all of them."""
    everyone = exchange("settings", dict(settings))
    differ = []
    for name in {name: None for of in everyone for name in of}:
        values = [of.get(name) for of in everyone]
        other = next((at for at, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differ.append(f"{name} ({values[0]!r} on process 0, {values[other]!r} on process {other})")
    if differ:
        raise Ended(
            f"the {world()} processes of this run have different settings: {', '.join(differ)}; "
            "start all of them with the same ones"
        )


def sum_over_ranks_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes; the sums are the same bits on all of them."""
    if world() == 1:
        return
    listed = list(tensors)
    exchange("sum", len(listed))
    with _naming_lost():
        dense = [tensor.contiguous() for tensor in listed]
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in dense]:
            work.wait()
    for tensor, summed in zip(listed, dense, strict=True):
        if summed is not tensor:
            tensor.copy_(summed)


def gather_rows(rows: Tensor) -> Tensor:
    """Put the rows ``(own, ...)`` of all processes below each other in the order of their ranks; some may have none."""
    if world() == 1:
        return rows
    counts = exchange("rows", len(rows))
    first = sum(counts[: rank()])
    everyone = rows.new_zeros(sum(counts), *rows.shape[1:])
    everyone[first : first + len(rows)] = rows
    with _naming_lost():
        dist.all_reduce(everyone)
    return everyone


def _is_known(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, one that all processes have."""
    while error and not isinstance(error, Ended):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _naming_lost() -> Iterator[None]:
    """Turn what torch says when another process has died into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or re.search("connection|peer|timed? ?out", str(error), re.IGNORECASE):
            said = str(error).strip().partition("\n")[0]
            raise Ended(
                f"another process of this run has died or does not answer; see what it said last ({said})"
            ) from error
        raise
