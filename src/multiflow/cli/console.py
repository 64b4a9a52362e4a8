"""What the commands print: tables on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    """Make a table; columns of numbers are aligned to the right."""
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
    """Print what ``multiflow --help`` says."""
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
