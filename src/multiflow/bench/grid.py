"""From a grid to its cells, in the order in which they are computed, with the names in it checked.

What makes a cell the cell it is are the settings on which its figures depend, and their hash. Settings at their
defaults are left out, so that an option that comes with a later version changes no id. So are device, engine, number of
processes and all output folders. A model counts by the bytes of its weights, a config and a tokenizer that are given
with it by their bytes if they lie on this machine, data that the config makes by how they are made, other data by their
path, and a pruner of the user's own by its source text.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.runs import identity
from multiflow.base.strict import changed
from multiflow.bench.config import Calibration, Grid, ModelEntry, PrunerEntry, TaskEntry, Tier
from multiflow.bench.records import DENSE, Cell
from multiflow.bench.sources import made_settings
from multiflow.families.opening import find_model
from multiflow.methods import PRUNERS, find_pruner
from multiflow.tasks.task import TASKS
from multiflow.training.finetune import FREE_TO_CHANGE

DIGITS = 16
BESIDE = {"config": ("*.json", "*.yaml", "*.yml"), "tokenizer": ("*.json", "*.txt", "*.model")}
WEIGHTS = ("config.json", "*.safetensors", "*.bin", "*.pth", "*.th", "*.pt")


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Hash settings to sixteen hexadecimal digits."""
    return identity(settings, DIGITS)


def model_settings(model: ModelEntry) -> dict[str, Any]:
    """Return what a model is: its weights by their hash, or the id of one that is not on this machine."""
    rest = changed(model, ("source", "tasks", "calibration"))
    for name in BESIDE.keys() & rest.keys():
        if (beside := Path(rest[name]).expanduser()).exists():
            rest[name] = hash_files(beside, BESIDE[name])
    place = Path(find_model(model.source))
    if not place.exists():
        return {"source": model.source, **rest}
    return {"weights": hash_files(place, WEIGHTS), **rest}


def hash_files(place: Path, patterns: Sequence[str]) -> str:
    """Hash the bytes of a file, or of those files of a folder that fit one of the patterns."""
    files = [place] if place.is_file() else sorted({file for name in patterns for file in place.glob(name)})
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:DIGITS]


def data_settings(path: str, grid: Grid) -> Any:
    """Return what data are: how the config makes them, or where they lie."""
    return made_settings(path, grid.make) or path


def calibration_settings(calibration: Calibration, grid: Grid) -> dict[str, Any]:
    return _with_data(changed(calibration, ("workers",)), grid)


def task_settings(task: TaskEntry, grid: Grid) -> dict[str, Any]:
    training = changed(task.training(), (*FREE_TO_CHANGE, "data", "images"))
    return {**_with_data(changed(task, ("skip_missing",)), grid), "finetune": training}


def _with_data(settings: dict[str, Any], grid: Grid) -> dict[str, Any]:
    return {name: data_settings(of, grid) if name in ("data", "images") else of for name, of in settings.items()}


def pruner_settings(entry: PrunerEntry) -> dict[str, Any]:
    """Return what a pruner is: its record, and of one that is not the library's the text of its function."""
    pruner = find_pruner(entry.method)
    given = pruner.settings(entry.hyper)
    hyper = {name: value for name, value in given.items() if value != pruner.hyper[name]}
    settings: dict[str, Any] = {**changed(entry, ("hyper",)), **({"hyper": hyper} if hyper else {})}
    if not pruner.function.__module__.startswith("multiflow."):
        settings["code"] = hashlib.sha256(inspect.getsource(pruner.function).encode()).hexdigest()[:DIGITS]
    return settings


SELECT = ("model", "pruner", "task", "sparsity", "seed")


@dataclass(frozen=True)
class Plan:
    """A cell, and all that a worker needs to compute it."""

    cell: Cell  # without figures
    model: ModelEntry  # the cell's model
    task: TaskEntry  # the cell's task as this model does it
    pruner: PrunerEntry | None  # the cell's pruner; None for the baseline
    sparsities: tuple[float, ...] = ()  # those of the pruning that are made together
    modules: tuple[str, ...] = ()  # with pruners of the user's own


def expand(grid: Grid) -> list[Plan]:
    """Return the plans of all cells: tier by tier, the baseline first, then pruning by pruning.

    A cell of several tiers belongs to the first. The names of the grid are those that `check_names` has let pass.

    Raises:
        MultiflowError: a tier without cells, a model without the calibration data it needs, or two names for one thing.
    """
    plans: dict[str, Plan] = {}
    sparsities: dict[str, dict[float, None]] = {}
    settings = _PartSettings(grid)
    for tier in grid.tiers:
        for plan in _tier(grid, tier, settings):
            other = plans.setdefault(plan.cell.id, plan).cell
            _check_same(other, plan.cell)
            if plan.cell.pruning is not None:
                sparsities.setdefault(plan.cell.pruning, {})[plan.cell.sparsity] = None
    return [replace(plan, sparsities=_together(plan, sparsities)) for plan in plans.values()]


def _together(plan: Plan, sparsities: Mapping[str, Mapping[float, None]]) -> tuple[float, ...]:
    """Return the sparsities of a pruning that are made at once: all, but those of a recovery, which takes its time."""
    if plan.cell.pruning is None:
        return ()
    recovers = plan.pruner is not None and plan.pruner.recover
    return (plan.cell.sparsity,) if recovers else tuple(sparsities[plan.cell.pruning])


class _PartSettings:
    """Settings of the grid's parts, each found once."""

    def __init__(self, grid: Grid) -> None:
        self.model = cache(lambda name: model_settings(grid.models[name]))
        self.task = cache(lambda name, model: task_settings(grid.tasks[name].of(name, model), grid))
        self.pruner = cache(lambda name: pruner_settings(pruner_entry(grid, name)))
        self.calibration = cache(lambda name: calibration_settings(_calibration(grid, name), grid))


def _tier(grid: Grid, tier: Tier, settings: _PartSettings) -> Iterator[Plan]:
    names = list(grid.models if tier.models is None else tier.models)
    pairs = [(m, t) for m in names for t in grid.models[m].tasks if tier.tasks is None or t in tier.tasks]
    if not pairs:
        raise MultiflowError(f"tier '{tier.name}' has no cells: none of its models does any of its tasks; add one")
    if DENSE in tier.pruners:
        for seed in tier.seeds:
            for model, task in pairs:
                yield _plan(grid, tier, settings, model, DENSE, 0.0, task, seed)
    for seed in tier.seeds:
        for model in names:
            for pruner in [name for name in tier.pruners if name != DENSE]:
                for sparsity in tier.sparsities:
                    for task in [task for of, task in pairs if of == model]:
                        yield _plan(grid, tier, settings, model, pruner, sparsity, task, seed)


def _plan(
    grid: Grid, tier: Tier, settings: _PartSettings, model: str, pruner: str, sparsity: float, task: str, seed: int
) -> Plan:
    what: dict[str, Any] = {"model": settings.model(model), "task": settings.task(task, model), "seed": seed}
    entry, pruning = None, None
    if pruner != DENSE:
        entry = pruner_entry(grid, pruner)
        how: dict[str, Any] = {"pruner": settings.pruner(pruner)}
        if entry.needs_data:
            how["calibration"] = settings.calibration(model)
        pruning = hash_settings({"model": what["model"], "seed": seed, **how})
        what |= {**how, "sparsity": sparsity}
    cell = Cell(hash_settings(what), model, pruner, sparsity, task, seed, tier.name, pruning=pruning, settings=what)
    return Plan(cell, grid.models[model], grid.tasks[task].of(task, model), entry, modules=grid.modules)


def pruner_entry(grid: Grid, name: str) -> PrunerEntry:
    """Return the record of a pruner of the grid: its own, or one that names a registered pruner."""
    return grid.pruners.get(name) or PrunerEntry(name)


def _calibration(grid: Grid, model: str) -> Any:
    found = grid.models[model].calibration
    if found is None:
        raise MultiflowError(
            f"model '{model}' has no calibration data, which pruners of its tiers need; give some under "
            f"models.{model}.calibration, or leave the model out of these tiers"
        )
    return found


def _check_same(first: Cell, second: Cell) -> None:
    for what in ("model", "task", "pruner"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise MultiflowError(f"{what}s '{one}' and '{other}' of the grid are the same thing; leave one out")


def check_names(grid: Grid) -> None:
    pruners = {DENSE: None, **dict.fromkeys(PRUNERS), **dict.fromkeys(grid.pruners)}
    if DENSE in grid.pruners:
        raise MultiflowError(f"pruners.{DENSE} is the baseline's name; choose another one")
    for name, task in grid.tasks.items():
        if (task.kind or name) not in TASKS:
            raise unknown("task", task.kind or name, TASKS)
        _check_all(f"tasks.{name}.models", task.models, grid.models, "model")
    for name, model in grid.models.items():
        _check_all(f"models.{name}.tasks", model.tasks, grid.tasks, "task")
    for name, entry in grid.pruners.items():
        _check_all(f"pruners.{name}.method", [entry.method], PRUNERS, "pruner")
    _check_twice("tiers", [tier.name for tier in grid.tiers])
    for tier in grid.tiers:
        place = f"tiers.{tier.name}"
        _check_all(f"{place}.pruners", tier.pruners, pruners, "pruner")
        _check_all(f"{place}.models", tier.models or (), grid.models, "model")
        _check_all(f"{place}.tasks", tier.tasks or (), grid.tasks, "task")
        for what in ("pruners", "sparsities", "seeds"):
            _check_twice(f"{place}.{what}", getattr(tier, what))
        if not tier.seeds or not tier.pruners or (set(tier.pruners) != {DENSE} and not tier.sparsities):
            raise MultiflowError(f"{place} has no cells; give it pruners, sparsities and seeds")
        if low := [seed for seed in tier.seeds if seed < 0]:
            raise MultiflowError(f"{place}.seeds holds {low[0]}; expected at least 0")


def _check_all(place: str, names: Iterable[str], known: Collection[str], kind: str) -> None:
    names = list(names)
    _check_twice(place, names)
    for name in names:
        if name not in known:
            there = ", ".join(known)
            raise MultiflowError(f"unknown {kind} '{name}' in {place}; known: {there}{did_you_mean(name, known)}")


def _check_twice(place: str, names: Sequence[Any]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise MultiflowError(f"{place} names {name!r} twice; leave one out")


def select(plans: Sequence[Plan], tiers: Sequence[str] = (), only: Sequence[str] = ()) -> list[Plan]:
    """Return the plans of some tiers, and of these the ones that ``NAME=VALUE[,VALUE]`` leaves.

    Args:
        plans: those of the whole grid.
        tiers: names; none = all.
        only: such as ``model=xvlm-shapes`` or ``sparsity=0.75,0.9``; a cell must fit all of them.

    Raises:
        MultiflowError: a tier, name or value that no cell has, or no cell that has all of them.
    """
    known = dict.fromkeys(plan.cell.tier for plan in plans)
    for name in tiers:
        if name not in known:
            raise unknown("tier", name, known)
    wanted: dict[str, set[str]] = {}
    for pair in only:
        name, _, values = pair.partition("=")
        if name not in SELECT:
            raise MultiflowError(
                f"--only got '{pair}'; expected NAME=VALUE with one of {', '.join(SELECT)}{did_you_mean(name, SELECT)}"
            )
        there = dict.fromkeys(_word(plan.cell, name) for plan in plans)
        for value in values.split(","):
            if value not in there:
                raise unknown(f"value of --only {name}", value, there)
        wanted.setdefault(name, set()).update(values.split(","))
    chosen = [
        plan
        for plan in plans
        if (not tiers or plan.cell.tier in tiers) and all(_word(plan.cell, n) in of for n, of in wanted.items())
    ]
    if not chosen:
        asked = ", ".join([*([f"tier {' or '.join(tiers)}"] if tiers else []), *only])
        raise MultiflowError(f"no cell of the grid fits all that was asked for ({asked}); leave out one of them")
    return chosen


def _word(cell: Cell, name: str) -> str:
    value = getattr(cell, name)
    return f"{value:g}" if isinstance(value, float) else str(value)
