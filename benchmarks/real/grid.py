"""The grid on real weights: who prunes what to which sparsities, cell by cell into the records of the benchmark.

``real.yaml`` is read strictly; its pruners and tiers are those of `multiflow.bench.config`. There is no fine-tuning:
a cell is a model after pruning, or after pruning and recovery, measured as it stands. What is done is skipped, so a
killed run goes on.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

import multiflow as mf
from benchmarks.real.report import FACTS
from benchmarks.real.world import Items, World, hash_model
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import read_yaml, write_atomically
from multiflow.base.runs import identity, locked
from multiflow.base.strict import build
from multiflow.bench.config import PrunerEntry, Tier
from multiflow.bench.machine import describe_machine, git_revision
from multiflow.bench.pruning import pruning_record
from multiflow.bench.records import CONFIG, DENSE, GRID, Cell, Results
from multiflow.calibration.memory import peak_memory, reset_peak_memory
from multiflow.families.opening import quiet_transformers
from multiflow.methods import find_pruner
from multiflow.pruning.plan import versions

DIGITS = 16
GRID_FILE = Path(__file__).parent.parent / "real.yaml"
CPU = torch.device("cpu")
PRUNE, RECOVER, EVALUATE = "prune CPU s", "recover CPU s", "evaluate CPU s"
"""Seconds of the processor, which other work on the machine does not lengthen; of a pruning those of one sparsity."""


@dataclass(frozen=True)
class RealGrid:
    """A whole config."""

    name: str  # for titles
    models: Mapping[str, str]  # name -> module with ``open_world(cache) -> World``
    tiers: tuple[Tier, ...]  # in the order in which they are computed
    pruners: Mapping[str, PrunerEntry] = field(default_factory=dict)  # those that are not simply registered ones
    beyond: tuple[Tier, ...] = ()  # what is computed where it is asked for by name
    short: tuple[Tier, ...] = ()  # the cut

    def entry(self, pruner: str) -> PrunerEntry:
        return self.pruners.get(pruner, PrunerEntry(pruner))


def read_real_grid(path: Path = GRID_FILE) -> RealGrid:
    """Read a config.

    Raises:
        MultiflowError: an unknown key, model or pruner.
    """
    grid = build(RealGrid, read_yaml(path), "the config")
    for tier in (*grid.tiers, *grid.beyond, *grid.short):
        for name in tier.models or ():
            if name not in grid.models:
                raise unknown("model", name, grid.models)
        for name in tier.pruners:
            if name != DENSE:
                find_pruner(grid.entry(name).method)
    return grid


@dataclass(frozen=True)
class Job:
    """A pruning of the grid: one model, pruner and seed, and the sparsities that are wanted of it."""

    tier: str
    model: str
    pruner: str
    seed: int
    sparsities: tuple[float, ...]


def jobs_of(grid: RealGrid, tiers: Sequence[Tier]) -> Iterator[Job]:
    """Give the prunings of some tiers; a pruner that looks at no data has one seed."""
    given: set[tuple[str, str, int, float]] = set()
    for tier in tiers:
        for model in tier.models or tuple(grid.models):
            for pruner in tier.pruners:
                dense = pruner == DENSE
                free = dense or not grid.entry(pruner).needs_data
                for seed in tier.seeds[:1] if free else tier.seeds:
                    wanted = (0.0,) if dense else tier.sparsities
                    new = tuple(s for s in wanted if (model, pruner, seed, s) not in given)
                    given |= {(model, pruner, seed, s) for s in new}
                    if new:
                        yield Job(tier.name, model, pruner, seed, new)


@dataclass(frozen=True)
class Opened:
    """A model that is open, and the hash of its weights."""

    world: World
    mark: str


@dataclass(frozen=True)
class Runner:
    """Computes jobs into a folder of results. Several may share one: a pruning is made by whoever comes first."""

    grid: RealGrid
    results: Results
    say: Callable[[str], None] = print

    def run(
        self, tiers: Sequence[Tier], worlds: Mapping[str, Callable[[], World]], first: Fraction = Fraction(0)
    ) -> int:
        """Compute what is missing; return how many cells were.

        Args:
            tiers: of the grid.
            worlds: model -> opens it; a model whose data are missing is left out with a line that says so.
            first: where in the list of prunings to begin, as a share of it; those before come last.
        """
        jobs = [job for job in jobs_of(self.grid, tiers) if job.model in worlds]
        at = int(first * len(jobs))
        opened: dict[str, Opened | None] = {}
        computed, others = 0, []
        # 1. What nobody else is at.
        for job in [*jobs[at:], *jobs[:at]]:
            if job.model not in opened:
                opened[job.model] = self._open(job.model, worlds[job.model], jobs)
            if (found := opened[job.model]) is None:
                continue
            done = self._claim(job, found, wait=False)
            if done is None:
                others.append((job, found))
            computed += done or 0
        # 2. What others were at, and have left if they were killed.
        return computed + sum(self._claim(job, found, wait=True) or 0 for job, found in others)

    def _open(self, name: str, open_world: Callable[[], World], jobs: Sequence[Job]) -> Opened | None:
        try:
            world = open_world()
        except MultiflowError as error:
            self.say(f"{name} is left out: {error}")
            return None
        found = Opened(world, hash_model(world.model))
        self._say_facts(name, world)
        self._expect([job for job in jobs if job.model == name], found)
        return found

    def _claim(self, job: Job, found: Opened, *, wait: bool) -> int | None:
        """Do a job; None if another is at it and this one is not to wait. What is refused is said and left out."""
        with self.results.lock(f"{job.model}-{job.pruner}-{job.seed}-{found.mark}", wait=wait) as got:
            try:
                return self._job(job, found) if got else None
            except MultiflowError as error:
                self.say(f"{job.model} {job.pruner} seed {job.seed} is left out: {error}")
                return 0

    def _say_facts(self, name: str, world: World) -> None:
        path = self.results.folder / FACTS
        with self.results.lock(FACTS):
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            facts = {**known, name: {"title": world.title, **world.facts}}
            write_atomically(path, json.dumps(facts, indent=1) + "\n")

    def _expect(self, jobs: Sequence[Job], found: Opened) -> None:
        """Write which cells there are to be, beside those that are known."""
        new = [cell for job in jobs for s in job.sparsities for cell in self._cells(job, s, found).values()]
        with self.results.lock(GRID):
            known = {cell.id: cell for cell in [*self.results.expected(), *new]}
            self.results.expect(known.values())

    def _cells(self, job: Job, sparsity: float, of: Opened) -> dict[str, Cell]:
        """Return the cells of a pruned model without their figures: figure -> cell."""
        made: dict[str, Any] = {"weights": of.mark, "seed": job.seed}
        if job.pruner != DENSE:
            made["pruner"] = {k: v for k, v in asdict(self.grid.entry(job.pruner)).items() if v}
        pruning = None if job.pruner == DENSE else identity(made, DIGITS)
        found = {}
        for figure, metric in of.world.figures.items():
            settings = {**made, "sparsity": sparsity, "figure": figure}
            id = identity(settings, DIGITS)
            found[figure] = Cell(
                *(id, job.model, job.pruner, sparsity, figure, job.seed, job.tier),
                metric=metric,
                pruning=pruning,
                settings=settings,
            )
        return found

    def _job(self, job: Job, found: Opened) -> int:
        """Prune to the sparsities that lack figures, recover, measure; return how many cells that gave."""
        world, known = found.world, self.results.cells()
        missing = [s for s in job.sparsities if any(c.id not in known for c in self._cells(job, s, found).values())]
        if not missing:
            return 0
        if job.pruner == DENSE:
            return self._measure(job, 0.0, found, world.model, {}, {})
        entry = self.grid.entry(job.pruner)
        reset_peak_memory()
        used = time.process_time()
        batches = world.batches(job.seed) if entry.needs_data else None
        result = mf.prune(
            *(world.model, entry.method, missing, batches),
            adapter=world.adapter,
            pattern=entry.pattern,
            allocation=entry.allocation,
            seed=job.seed,
            **entry.hyper,
        )
        self._record(job, next(iter(self._cells(job, missing[0], found).values())), result, batches)
        used = time.process_time() - used
        count = 0
        for sparsity in missing:
            before, began, kept = time.process_time(), time.monotonic(), result
            if entry.recover:
                how = {"adapter": world.adapter, "seed": job.seed, **entry.recovery}
                kept = mf.recover(world.model, result, sparsity, batches, entry.recover, **how)
            recovery, recovered = time.monotonic() - began, time.process_time() - before
            sparse = deepcopy(world.model)
            kept.apply_(sparse, sparsity)
            more = {PRUNE: used / len(missing), RECOVER: recovered}
            if job.seed == 0:
                more["packed MB"] = packed_size(sparse, kept.masks[sparsity]) / 1e6
            seconds = {"prune": sum(result.timings.values()), "recover": recovery}
            count += self._measure(job, sparsity, found, sparse, seconds, more)
        return count

    def _record(self, job: Job, cell: Cell, result: mf.Result, batches: Sequence[Any] | None) -> None:
        """Write what was dropped where, beside what is known of other sparsities, before anything is measured."""
        assert cell.pruning is not None
        selection = sum(seconds for phase, seconds in result.timings.items() if phase != "calibrate")
        record = pruning_record(
            *(result, cell.pruning, job.model, job.pruner, job.seed),
            calibration=result.timings.get("calibrate", 0.0),
            selection=selection,
            pairs=0 if batches is None else len(batches),
            peak_memory=peak_memory(),
            machine=describe_machine(CPU),
        )
        there = self.results.prunings().get(cell.pruning)
        zeros = {**(there.zeros if there else {}), **record.zeros}
        self.results.append(replace(record, zeros=zeros, git=git_revision(self.results.folder)))

    def _measure(
        self,
        job: Job,
        sparsity: float,
        opened: Opened,
        model: nn.Module,
        seconds: Mapping[str, float],
        more: Mapping[str, float],
    ) -> int:
        began, before = time.monotonic(), time.process_time()
        found: Mapping[str, Items] = opened.world.evaluate(model.eval())
        more = {**more, EVALUATE: time.process_time() - before}
        took = {**seconds, "evaluate": time.monotonic() - began}
        for figure, cell in self._cells(job, sparsity, opened).items():
            items = found[figure]
            score = sum(items.each) / len(items.each)
            done = replace(
                cell,
                score=score,
                figures={cell.metric: score, **items.more, **more},
                each=[round(float(value), 4) for value in items.each],
                seconds=took,
                versions=versions(),
                git=git_revision(self.results.folder),
                machine=describe_machine(CPU),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self.results.append(done)
        said = ", ".join(f"{figure} {sum(of.each) / len(of.each):.1f}" for figure, of in found.items())
        zeros = f"{sparsity:.0%} " if sparsity else ""
        self.say(f"{job.model} {job.pruner} {zeros}seed {job.seed}: {said} ({sum(took.values()):.0f} s)")
        return len(found)


def packed_size(model: nn.Module, masks: mf.Masks) -> int:
    """Return the bytes of a sparse model as it is shipped, packed in bfloat16."""
    with tempfile.TemporaryDirectory() as place, quiet_transformers():
        out = Path(place) / "packed"
        mf.export(model, masks, out)
        return sum(file.stat().st_size for file in out.rglob("*.safetensors"))


def open_worlds(grid: RealGrid, cache: Path, only: Sequence[str] = ()) -> dict[str, Callable[[], World]]:
    """Return what opens each model of the grid, or some of them."""
    for name in only:
        if name not in grid.models:
            raise unknown("model", name, grid.models)

    def opener(module: str) -> Callable[[], World]:
        def open_world() -> World:
            try:
                found = import_module(module)
            except ModuleNotFoundError as error:
                raise MultiflowError(
                    f"'{module}' wants a module that is not there ({error.name}); install it"
                ) from error
            with locked(cache / "models.lock"):  # what is not there yet is made by the first who comes
                return found.open_world(cache)

        return open_world

    return {name: opener(module) for name, module in grid.models.items() if not only or name in only}


def chosen_tiers(grid: RealGrid, tiers: Sequence[str], *, short: bool) -> Sequence[Tier]:
    """Return the tiers of these names; without names the whole, which leaves out what lies beyond it, or the cut.

    Raises:
        MultiflowError: no tier has this name.
    """
    named = {tier.name: tier for tier in (*grid.tiers, *grid.beyond)}
    for name in tiers:
        if name not in named:
            raise unknown("tier", name, named)
    return [named[name] for name in tiers] or (grid.short if short else grid.tiers)


def run_real(
    cache: Path,
    out: Path,
    *,
    models: Sequence[str] = (),
    tiers: Sequence[str] = (),
    short: bool = False,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> int:
    """Compute the grid, or a part of it, into a folder; return how many cells that gave.

    Args:
        cache: with what was fetched.
        out: folder of results.
        models: names; none = all.
        tiers: names, also of those beyond the whole; none = the whole.
        short: the cut instead.
        processes: how many compute side by side, with one thread each where they are several.
        say: takes lines on what goes on; those of other processes are printed.
    """
    grid = read_real_grid()
    chosen, worlds = chosen_tiers(grid, tiers, short=short), open_worlds(grid, cache, models)
    results = Results(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / CONFIG, GRID_FILE.read_text(encoding="utf-8"))
    before = len(results.cells())
    context = get_context("spawn")
    shares = [Fraction(at, processes) for at in range(1, processes)]
    given = {"models": models, "tiers": tiers, "short": short}
    others = [context.Process(target=_share, args=(cache, out, given, at), daemon=True) for at in shares]
    for other in others:
        other.start()
    if others:
        torch.set_num_threads(1)
    Runner(grid, results, say).run(chosen, worlds)
    for other in others:
        other.join()
        if other.exitcode:
            say(f"a process that computed beside ended with {other.exitcode}, see above; the others did its part")
    return len(results.cells()) - before


def _share(cache: Path, out: Path, given: Mapping[str, Any], first: Fraction) -> None:
    """What another process does: the same, from another place on."""
    torch.set_num_threads(1)
    grid = read_real_grid()
    tiers = chosen_tiers(grid, given["tiers"], short=given["short"])
    worlds = open_worlds(grid, cache, given["models"])
    Runner(grid, Results(out), partial(print, flush=True)).run(tiers, worlds, first)
