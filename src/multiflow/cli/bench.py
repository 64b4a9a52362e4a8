"""``multiflow bench run`` and ``multiflow bench report``: a grid computed cell by cell, and what it shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from tyro.conf import Positional, arg

from multiflow.base.errors import MultiflowError, counted, unknown
from multiflow.base.files import read_yaml
from multiflow.base.guards import says_shortage
from multiflow.base.registry import import_modules
from multiflow.base.steps import clock
from multiflow.bench.check import check_data
from multiflow.bench.config import read_grid
from multiflow.bench.engines import ENGINES
from multiflow.bench.grid import Plan
from multiflow.bench.records import CELLS, CONFIG, DENSE, GRID, Cell, Results
from multiflow.bench.run import RunOptions, prepare, run_grid, to_do
from multiflow.cli.console import say, show, table
from multiflow.cli.settings import Device
from multiflow.families.opening import find_device, quiet_transformers

SOME_FAILED = 1
SHOWN = 5


@dataclass(frozen=True)
class BenchRunSettings:
    """Which grid to compute, which part of it, and where.

    Args:
        config: YAML file of the grid; docs/bench.md says what is in it
        out: folder of the results, new or that of an earlier run
        engine: here, local, ray or slurm
        workers: cells computed at once
        tier: compute these tiers alone
        only: compute these cells alone, such as model=xvlm-shapes sparsity=0.75,0.9
        set: values of the config's variables
        dry_run: check the grid and say what there is to do, without doing it
        skip_failed: leave out cells that have failed before, instead of trying them again
        cpus: threads of each worker
        gpus: GPUs of each worker, or a share of one
        memory: GB of memory that each worker asks for (ray and slurm)
        engine_set: settings of the engine, such as address=auto (ray) or partition=NAME (slurm)
    """

    config: Positional[str]
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: runs/bench-NAME)")] = None
    engine: Annotated[str, arg(metavar="ENGINE")] = "here"
    workers: Annotated[int, arg(metavar="N")] = 1
    tier: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    only: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="(default: all)")] = ()
    set: Annotated[tuple[str, ...], arg(metavar="VARIABLE=VALUE ...", help_behavior_hint="")] = ()
    dry_run: bool = False
    skip_failed: bool = False
    device: Device = "auto"
    cpus: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the cores shared out)")] = None
    gpus: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 1 where the device is cuda)")] = None
    memory: Annotated[float | None, arg(metavar="GB", help_behavior_hint="")] = None
    engine_set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()


@dataclass(frozen=True)
class BenchReportSettings:
    """Which results to report, and where to.

    Args:
        results: folder that 'multiflow bench run' wrote
        out: folder of the report
    """

    results: Positional[str]
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: RESULTS/report)")] = None


def bench_run(settings: BenchRunSettings) -> int:
    """Compute the cells that are missing, print a line for each and what came of all; 1 if some have failed.

    Raises:
        MultiflowError: a cell has failed because memory ended.
    """
    grid, config = read_grid(settings.config, settings.set)
    import_modules(grid.modules)
    options = run_options(settings)
    folder = Path(settings.out or f"runs/bench-{grid.name}")
    results = Results(folder)
    with quiet_transformers():
        plans, chosen = prepare(grid, options)
        missing = to_do(chosen, results.cells(), skip_failed=options.skip_failed)
        if settings.dry_run:
            check_data(missing, grid.make)
            show(summary(f"{folder}: what there is to do", chosen, results.cells()))
            return 0
        with cell_lines(len(missing)) as tell:
            for cell in run_grid(grid, config, plans, chosen, folder, options, say):
                tell(cell)
    cells = results.cells()
    show(summary(str(folder), chosen, cells))
    failed = [cells[plan.cell.id] for plan in chosen if plan.cell.id in cells and cells[plan.cell.id].error]
    for cell in failed[:SHOWN]:
        say(f"{words(cell)} failed: {cell.error}")
    if failed:
        say(f"{counted(len(failed), 'cell')} failed; see {folder / 'errors'}; the next run tries them again")
    if short := sum(says_shortage(str(cell.error)) for cell in failed):
        raise MultiflowError(
            f"{counted(short, 'cell')} of '{folder}' ran out of memory; free some, take fewer workers or smaller "
            "batches, or use a machine with more, and start the same command again"
        )
    return SOME_FAILED if failed else 0


def run_options(settings: BenchRunSettings) -> RunOptions:
    for name, value, least in (
        ("workers", settings.workers, 1),
        ("cpus", settings.cpus, 1),
        ("gpus", settings.gpus, 0),
        ("memory", settings.memory, 0),
    ):
        if value is not None and value < least:
            raise MultiflowError(f"--{name} {value} was given; expected at least {least}")
    if settings.engine not in ENGINES:
        raise unknown("engine", settings.engine, ENGINES)
    if settings.engine == "here" and settings.workers > 1:
        raise MultiflowError(
            f"--workers {settings.workers} was given, and engine 'here' is this one process; add --engine local"
        )
    if settings.engine in ("here", "local"):
        find_device(settings.device)
        if settings.memory is not None:
            raise MultiflowError(
                f"--memory {settings.memory:g} was given, and engine '{settings.engine}' limits no memory; leave it "
                "out, or take engine 'ray' or 'slurm'"
            )
    elif settings.cpus is None or settings.gpus is None:
        raise MultiflowError(
            f"--engine {settings.engine} computes on other machines than this one; say what a cell takes there with "
            "--cpus and --gpus (0 for none)"
        )
    own = dict(pair.partition("=")[::2] for pair in settings.engine_set)
    if "" in own.values():
        raise MultiflowError(f"--engine-set got '{' '.join(settings.engine_set)}'; expected NAME=VALUE")
    return RunOptions(
        settings.engine,
        settings.workers,
        settings.tier,
        settings.only,
        settings.skip_failed,
        settings.device,
        settings.cpus or 0,
        settings.gpus,
        round((settings.memory or 0) * 1e9),
        own,
    )


@contextmanager
def cell_lines(total: int) -> Iterator[Callable[[Cell], None]]:
    """Yield a callback that prints a line for every cell on standard error; on a terminal with a bar below."""
    console = Console(stderr=True, highlight=False)
    began, done = time.monotonic(), 0
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(console)) if console.is_terminal and total else None
        task = bar.add_task("cells", total=total) if bar else None

        def tell(cell: Cell) -> None:
            nonlocal done
            done += 1
            left = (time.monotonic() - began) / done * (total - done)
            line = f"cell {done}/{total}  {words(cell)}: {found(cell)}  ETA {clock(left)}"
            (bar.console if bar else console).print(line, soft_wrap=True, markup=False)
            if bar is not None and task is not None:
                bar.update(task, completed=done)

        yield tell


def progress_bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def words(cell: Cell) -> str:
    """Name a cell.

    >>> words(Cell("", "xvlm-shapes", "multiflow", 0.75, "vqa", 0, "1"))
    'multiflow 75 % vqa on xvlm-shapes seed 0'
    """
    how = DENSE if cell.pruner == DENSE else f"{cell.pruner} {100 * cell.sparsity:g} %"
    return f"{how} {cell.task} on {cell.model} seed {cell.seed}"


def found(cell: Cell) -> str:
    return "failed" if cell.score is None else f"{cell.score:.1f} ({sum(cell.seconds.values()):.0f} s)"


def summary(title: str, plans: Sequence[Plan], cells: Mapping[str, Cell]) -> Table:
    counts: dict[str, dict[str, int]] = {}
    for plan in plans:
        cell = cells.get(plan.cell.id)
        state = "missing" if cell is None else "failed" if cell.error else "done"
        tier = counts.setdefault(plan.cell.tier, {"cells": 0, "done": 0, "failed": 0, "missing": 0})
        tier["cells"] += 1
        tier[state] += 1
    return table(title, ["tier", "cells", "done", "failed", "missing"], [(n, *c.values()) for n, c in counts.items()])


def bench_report(settings: BenchReportSettings) -> None:
    from multiflow.report.bench import write_report

    results = Results(Path(settings.results))
    if not (results.folder / CELLS).is_file():
        raise MultiflowError(f"'{settings.results}' holds no {CELLS}; give a folder that 'multiflow bench run' wrote")
    cells, expected, notes = gather(results)
    out = Path(settings.out) if settings.out else results.folder / "report"
    for path in write_report(cells, list(results.prunings().values()), expected, out, title(results), notes):
        show(str(path))


def gather(results: Results) -> tuple[list[Cell], list[Cell], list[str]]:
    expected = results.expected()
    note = f"There is no {GRID}, which says what the grid has: nothing is known missing."
    return list(results.cells().values()), expected, [] if expected else [note]


def title(results: Results) -> str:
    path = results.folder / CONFIG
    content = read_yaml(path) if path.is_file() else None
    name = content.get("name") if isinstance(content, dict) else None
    return str(name or results.folder.resolve().name)
