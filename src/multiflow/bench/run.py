"""A run over the grid: what is done is skipped, the rest goes to an engine, and every cell that ends is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from multiflow.base.files import write_atomically
from multiflow.base.registry import import_modules
from multiflow.bench.check import check_data, check_models, check_settings
from multiflow.bench.config import Grid
from multiflow.bench.engines import EngineOptions, Job, JobOutcome, find_engine
from multiflow.bench.grid import Plan, check_names, expand, select
from multiflow.bench.machine import git_revision
from multiflow.bench.records import CONFIG, GRID, Cell, Results
from multiflow.bench.sources import check_make, make_data
from multiflow.bench.work import Order, finished, run_folder, work_on


@dataclass(frozen=True)
class RunOptions:
    """Which cells to compute, and where."""

    engine: str = "here"  # ``here``, ``local``, ``ray`` or ``slurm``
    workers: int = 1  # cells computed at once
    tiers: Sequence[str] = ()  # names; none = all
    only: Sequence[str] = ()  # see `multiflow.bench.grid.select`
    skip_failed: bool = False  # leave out cells that have failed before
    device: str = "auto"  # where each cell is computed
    cpus: int = 0  # threads of each worker; 0 shares the cores out among the workers
    # devices, or a share of one, for each worker; None = one if the device is ``cuda`` or ``auto`` finds one
    gpus: float | None = None
    memory: int = 0  # bytes for each worker; 0 asks for none in particular
    engine_options: dict[str, str] = field(default_factory=dict)  # settings of the engine

    def job(self, results: Results, order: Order) -> Job:
        cpus = self.cpus or max(1, torch.get_num_threads() // self.workers)
        cuda = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        gpus = float(cuda) if self.gpus is None else self.gpus
        return Job(str(results.folder.resolve()), order.plan.cell.id, cpus, gpus, self.memory, order)

    def for_engine(self) -> EngineOptions:
        return EngineOptions(self.workers, options=self.engine_options)


def prepare(grid: Grid, options: RunOptions) -> tuple[list[Plan], list[Plan]]:
    """Check the whole grid; return the plans of all its cells, and of those asked for.

    Raises:
        MultiflowError: anything that is wrong with the grid or the options, before anything is computed or written.
    """
    import_modules(grid.modules)
    find_engine(options.engine, options.for_engine())
    check_make(grid.make)
    check_names(grid)
    check_settings(grid)
    plans = expand(grid)
    chosen = select(plans, options.tiers, options.only)
    check_models(chosen)
    return plans, chosen


def run_grid(
    grid: Grid,
    config: str,
    plans: Sequence[Plan],
    chosen: Sequence[Plan],
    folder: str | Path,
    options: RunOptions,
    say: Callable[[str], None],
) -> Iterator[Cell]:
    """Compute the cells that are not done, and yield each that ends, failed ones too.

    Args:
        grid: the grid.
        config: its config with variables in their places, of which the folder keeps a copy.
        plans: of all its cells, from `prepare`.
        chosen: those to compute.
        folder: of results; it may hold those of other runs, and other runners may be at work in it.
        options: where to compute.
        say: takes lines on what goes on.

    Raises:
        MultiflowError: data that are missing or of another layout, or the engine cannot be had.
    """
    engine = find_engine(options.engine, options.for_engine())
    results = Results(Path(folder))
    make_data(grid.make, say)
    before = results.cells()
    missing = to_do(chosen, before, skip_failed=options.skip_failed)
    check_data(missing)
    with results.lock(GRID):
        write_atomically(results.folder / CONFIG, config)
        results.expect(plan.cell for plan in plans)
    drop_runs(results, before)
    git, ended = git_revision(results.folder), {id: cell.finished for id, cell in before.items()}
    waiting = {
        plan.cell.id: Order(plan, str(Path.cwd()), options.device, git, ended.get(plan.cell.id))
        for plan in (spread(missing) if options.workers > 1 else missing)
    }
    for wait in (False, True):  # first what nobody has in hand, then what other runners had
        jobs = [options.job(results, replace(order, wait=wait)) for order in waiting.values()]
        for outcome in engine(jobs, work_on, options.for_engine()):
            if (cell := line_of(outcome, results)) is not None:
                del waiting[cell.id]
                yield cell
    if not to_do(plans, results.cells()):
        shutil.rmtree(results.folder / "stats", ignore_errors=True)


def line_of(outcome: JobOutcome, results: Results) -> Cell | None:
    """Return the line of a cell whose job is over, written here if the worker died; None if another runner has it."""
    order: Order = outcome.job.order
    cell = results.cell(outcome.job.cell)
    if outcome.error is not None and (cell is None or cell.error is not None):
        cell = finished(replace(order.plan.cell, error=outcome.error), order.git)
        results.append(cell)
    return cell if order.is_over(cell) else None


def drop_runs(results: Results, cells: Mapping[str, Cell]) -> None:
    """Delete the training of cells that have figures, which a kill between the two has left."""
    for cell in cells.values():
        if cell.error is None:
            shutil.rmtree(run_folder(results, cell.id), ignore_errors=True)


def spread(plans: Sequence[Plan]) -> list[Plan]:
    """Put one cell of every pruning of a tier before the others, so that workers prune instead of waiting for masks."""
    tiers = {tier: at for at, tier in enumerate(dict.fromkeys(plan.cell.tier for plan in plans))}
    first: dict[str | None, str] = {}
    for plan in plans:
        first.setdefault(plan.cell.pruning, plan.cell.id)

    def order(plan: Plan) -> tuple[int, bool]:
        cell = plan.cell
        return tiers[cell.tier], cell.pruning is not None and first[cell.pruning] != cell.id

    return sorted(plans, key=order)


def to_do(plans: Sequence[Plan], cells: Mapping[str, Cell], *, skip_failed: bool = False) -> list[Plan]:
    """Return the plans of those cells that have no figures yet."""
    return [
        plan
        for plan in plans
        if (cell := cells.get(plan.cell.id)) is None or (cell.error is not None and not skip_failed)
    ]
