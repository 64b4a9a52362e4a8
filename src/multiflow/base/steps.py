"""How far a call of the library is: bars on a terminal and in a notebook, plain lines for the command line elsewhere.

A function that works for a while is decorated with `watched` and takes ``progress``: a callback ``f(what, done,
total)``; False for silence; None, the default, for bars where a person looks and silence elsewhere. The environment
variable ``MULTIFLOW_PROGRESS=0`` silences all that have not been asked for.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from multiflow.base.parallel import rank

if TYPE_CHECKING:
    from rich.console import Console

Step: TypeAlias = Callable[[str, int, int | None], None]
"""``f(what, done, total)``: how the library reports that its work goes on; ``total`` is None where it is not known."""
Watch: TypeAlias = Step | Literal[False] | None
"""What ``progress`` of a function may be."""
Draw: TypeAlias = Callable[[str, int, int | None, str], None]
P = ParamSpec("P")
R = TypeVar("R")

UNITS = {
    "calibrate": "batches",
    "select": "layers",
    "fit": "layers",
    "stream": "blocks",
    "learn": "steps",
    "evaluate": "models",
    "write": "pictures",
}
EVERY = 10.0  # seconds between two plain lines
SILENT = "MULTIFLOW_PROGRESS"
_watching: ContextVar[bool] = ContextVar("watching", default=False)


def watched(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that takes ``progress`` show bars where a person looks, unless one that called it does already."""

    @wraps(function)
    def run(*args: P.args, **keywords: P.kwargs) -> R:
        given = keywords.get("progress")
        if given is not None and given is not False:
            return function(*args, **keywords)
        show = _notebook_bars if in_notebook() else _rich_bars
        wanted = given is None and os.environ.get(SILENT) != "0" and rank() == 0 and not _watching.get()
        if not wanted or not (in_notebook() or sys.stderr.isatty()):
            return function(*args, **{**keywords, "progress": None})  # type: ignore[arg-type]
        with _alone(), show() as draw:
            return function(*args, **{**keywords, "progress": _paced(draw)})  # type: ignore[arg-type]

    return run


@contextmanager
def step_progress() -> Iterator[Step]:
    """Yield a callback that shows on standard error how far each stage is: bars on a terminal, lines elsewhere.

    >>> with step_progress() as step:       # doctest: +SKIP
    ...     step("calibrate", 8, 100)
    calibrate 8/100 batches, 3.1 batches/s, ETA 0:30
    """
    with _alone():
        if sys.stderr.isatty():
            with _rich_bars() as draw:
                yield _paced(draw)
        else:
            yield _paced(_plain_lines())


def clock(seconds: float | None) -> str:
    """Write a duration as ``h:mm:ss`` or ``m:ss``.

    >>> clock(3671), clock(61), clock(None)
    ('1:01:11', '1:01', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


@contextmanager
def _alone() -> Iterator[None]:
    token = _watching.set(True)
    try:
        yield
    finally:
        _watching.reset(token)


def _paced(draw: Draw) -> Step:
    """Add rate and time left; what an earlier run had done before the first call does not count.

    A stage begins anew where its count goes back.
    """
    stage, first, before, began = "", 0, 0, 0.0
    last = time.monotonic()

    def step(what: str, done: int, total: int | None) -> None:
        nonlocal stage, first, before, began, last
        if what != stage or done < before:
            stage, first, began = what, done - 1, last
        before, last = done, time.monotonic()
        rate = (done - first) / max(last - began, 1e-6)
        eta = None if total is None else (total - done) / rate
        pace = f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}"
        draw(what, done, total, f"{pace} {UNITS.get(what, 'steps')}/s, ETA {clock(eta)}")

    return step


@contextmanager
def _rich_bars() -> Iterator[Draw]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    names, pace = TextColumn("{task.description}"), TextColumn("{task.fields[pace]}")
    tasks: dict[str, TaskID] = {}

    def draw(what: str, done: int, total: int | None, pace: str) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, pace="")
        bar.update(tasks[what], completed=done, total=total, pace=pace)

    with Progress(names, BarColumn(), MofNCompleteColumn(), pace, console=_console()) as bar:
        yield draw


@contextmanager
def _notebook_bars() -> Iterator[Draw]:
    """A bar a stage, by what the notebook has: widgets, or else a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that widgets are not installed
        from tqdm.auto import tqdm
    bars: dict[str, Any] = {}

    def draw(what: str, done: int, total: int | None, pace: str) -> None:
        if what not in bars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bars[what] = tqdm(desc=what, total=total, unit=f" {UNITS.get(what, 'steps')}")
        bars[what].n = done
        bars[what].refresh()

    try:
        yield draw
    finally:
        for bar in bars.values():
            bar.close()


def _plain_lines() -> Draw:
    console, printed = _console(), float("-inf")

    def draw(what: str, done: int, total: int | None, pace: str) -> None:
        nonlocal printed
        if done == total or time.monotonic() - printed >= EVERY:
            printed = time.monotonic()
            of = "" if total is None else f"/{total}"
            console.print(f"{what} {done}{of} {UNITS.get(what, 'steps')}, {pace}", soft_wrap=True, markup=False)

    return draw


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)
