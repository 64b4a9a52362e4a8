"""What the commands print: tables on standard output; progress, warnings and errors on standard error.

Progress is a bar on a terminal and plain lines elsewhere, with rate and time left.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from multiflow.base.progress import clock

if TYPE_CHECKING:
    from multiflow.cli.commands import Command

NUMBER = re.compile(r"[\d.,]+( %| [kMG]B)?")
WIDE = 240  # columns where nobody looks at a terminal: a table is not to be cut


def say(text: str) -> None:
    """Print a line on standard error, on which the library itself has to say something."""
    print(f"multiflow: {text}", file=sys.stderr)


@contextmanager
def announcements() -> Iterator[None]:
    """Print what the library announces, such as the memory it is about to take, as lines on standard error."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("multiflow")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Output(Console):
    """Standard output; a reader that goes away is left to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(*lines: object) -> None:
    """Print tables and lines of text on standard output."""
    console = _Output(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for line in lines:
        if isinstance(line, Table):
            if line.title:  # on a line of its own: rich would wrap it to the width of the table
                console.print(Text(str(line.title), "bold"), soft_wrap=True)
                line.title = None
            console.print(line)
        else:
            console.print(Text(str(line)), soft_wrap=True)


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    made = Table(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        numbers = bool(cells) and all(NUMBER.fullmatch(row[number].plain) for row in cells)
        made.add_column(header, justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def percent(share: float) -> str:
    """Write a share as a percentage.

    >>> percent(0.63)
    '63.00 %'
    """
    return f"{100 * share:.2f} %"


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes.

    >>> megabytes(22_900_000)
    '22.9 MB'
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def print_help(commands: Iterable[Command]) -> None:
    rows = [(command.name, command.summary) for command in commands]
    show(
        "Prune a vision-language model once, for every task.\n\nusage: multiflow COMMAND [OPTIONS]\n",
        table("", ("command", ""), rows),
        "multiflow COMMAND --help   the options of a command, with an example\nmultiflow --version        the version",
    )


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings inside the block as one clean line each."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("ignore", r"\d+ of \d+ items skipped")  # the account of a run says so
        yield


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {' '.join(str(message).split())}")


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
