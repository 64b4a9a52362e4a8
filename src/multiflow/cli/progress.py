"""How far a command is: a bar on a terminal, plain lines elsewhere, with rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from multiflow.base.progress import clock

Step: TypeAlias = Callable[[str, int, int | None], None]
"""``f(what, done, total)``: how the library reports that its work goes on; ``total`` is None where it is not known."""
Draw: TypeAlias = Callable[[str, int, int | None, str], None]

UNITS = {
    "calibrate": "batches",
    "select": "layers",
    "fit": "layers",
    "learn": "steps",
    "evaluate": "models",
    "write": "pictures",
}
EVERY = 10.0  # seconds between two plain lines


@contextmanager
def step_progress() -> Iterator[Step]:
    """Yield a callback that shows on standard error how far each stage of a computation is.

    >>> with step_progress() as step:       # doctest: +SKIP
    ...     step("calibrate", 8, 100)
    calibrate 8/100 batches, 3.1 batches/s, ETA 0:30
    """
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        with Bar(*columns, console=console) as bar:
            yield _paced(_bars(bar))
    else:
        yield _paced(_plain_lines(console))


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


def _bars(bar: Bar) -> Draw:
    tasks: dict[str, TaskID] = {}

    def draw(what: str, done: int, total: int | None, pace: str) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, pace="")
        bar.update(tasks[what], completed=done, total=total, pace=pace)

    return draw


def _plain_lines(console: Console) -> Draw:
    printed = float("-inf")

    def draw(what: str, done: int, total: int | None, pace: str) -> None:
        nonlocal printed
        if done == total or time.monotonic() - printed >= EVERY:
            printed = time.monotonic()
            of = "" if total is None else f"/{total}"
            console.print(f"{what} {done}{of} {UNITS.get(what, 'steps')}, {pace}", soft_wrap=True, markup=False)

    return draw
