"""How far a long computation is, and how to show it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from multiflow.base.steps import clock


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    stage: str  # name of what is running
    step: int  # steps done
    steps: int  # steps in all
    rate: float = 0.0  # samples per second (0 when not known yet)
    eta: float | None = None  # seconds until the stage is done, or None when not known yet
    metrics: Mapping[str, float] = field(default_factory=dict)  # latest figures, by name

    def __str__(self) -> str:
        figures = " ".join(f"{name} {value:.3g}" for name, value in self.metrics.items())
        return " | ".join(part for part in (f"{self.stage} {self.step}/{self.steps}", self._pace, figures) if part)

    @property
    def _pace(self) -> str:
        return f"{self.rate:.0f} samples/s, ETA {clock(self.eta)}"


Report: TypeAlias = Callable[[Progress], None]


def paced(stage: str, report: Report) -> Callable[[int, int], None]:
    """Return what a task calls with (items done, items in all), which reports a `Progress` with rate and time left."""
    began = time.monotonic()

    def step(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - began, 1e-6)
        report(Progress(stage, done, total, rate, (total - done) / rate if rate else None))

    return step


@contextmanager
def console_progress(console: Console | None = None, every: float = 10.0) -> Iterator[Report]:
    """Yield a callback that shows `Progress` values.

    On a terminal one bar per stage; elsewhere a plain line at most every ``every`` seconds and at the end of a stage.

    >>> with console_progress() as progress:
    ...     progress(Progress("demo", 10, 10))
    demo 10/10 | 0 samples/s, ETA -:--
    """
    console = console or Console()
    if not console.is_terminal:
        yield _plain_lines(console, every)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bar(*columns, TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.steps, note="")
            loss = f", loss {progress.metrics['loss']:.3f}" if "loss" in progress.metrics else ""
            bar.update(tasks[progress.stage], completed=progress.step, note=progress._pace + loss)

        yield show


def _plain_lines(console: Console, every: float) -> Report:
    last = float("-inf")

    def show(progress: Progress) -> None:
        nonlocal last
        if progress.step == progress.steps or time.monotonic() - last >= every:
            last = time.monotonic()
            console.print(str(progress), soft_wrap=True, markup=False, highlight=False)

    return show
