"""What is wrong with a grid, found before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.bench.config import Grid, PrunerEntry, TaskEntry
from multiflow.bench.grid import Plan
from multiflow.bench.sources import calibration_batches, is_missing, load, load_beside, made_settings
from multiflow.data.layouts.huggingface import PREFIX
from multiflow.pruning.plan import Request, make_plan, request
from multiflow.recovery.run import find_ways
from multiflow.tasks.task import TASKS
from multiflow.training.settings import plan_finetuning

ELSEWHERE = {
    "data": "the task's own key data",
    "images": "the task's own key images",
    "skip_missing": "the task's own key skip_missing",
    "seed": "seeds of a tier",
    "device": "--device",
    "shard": "torchrun and multiflow finetune",
}
"""Settings of fine-tuning that are no settings of a cell -> where they belong."""
OWN_ARGUMENTS = ("model", "tokenizer", "data", "progress", "save")


def check_settings(grid: Grid) -> None:
    """Check the settings of tasks, sparsities and pruners, for which no model is needed."""
    for name, task in grid.tasks.items():
        for model in [None, *task.models]:
            place = f"tasks.{name}" + (f".models.{model}" if model else "")
            _check_task(task.of(name, model or ""), place)
    for tier in grid.tiers:
        for name in tier.pruners:
            entry = grid.pruners.get(name, PrunerEntry(name))
            if name != "dense":
                with named(f"pruner '{name}' in tier '{tier.name}'"):
                    _request(entry, tier.sparsities)
    for path in data_paths(grid):
        if made_settings(path, grid.make) is None and not Path(path).expanduser().exists():
            raise MultiflowError(f"no data at '{path}': no such file or folder; check the path, or make the data")


def _check_task(task: TaskEntry, place: str) -> None:
    for key in task.finetune:
        if key in ELSEWHERE:
            raise MultiflowError(f"'{key}' stands in {place}.finetune; it belongs to {ELSEWHERE[key]}")
    task.training(f"{place}.finetune")
    assert task.kind is not None
    takes = inspect.signature(TASKS[task.kind].evaluate).parameters.values()
    known = [p.name for p in takes if p.kind is not p.VAR_KEYWORD and p.name not in OWN_ARGUMENTS]
    for key in task.evaluate:
        if key not in known:
            raise unknown(f"option of {place}.evaluate", key, known)


def _request(entry: PrunerEntry, sparsities: Sequence[float]) -> Request:
    if entry.recover or entry.recovery:
        find_ways(entry.recover, entry.recovery)
    return request(
        entry.method, sparsities, pattern=entry.pattern, allocation=entry.allocation, hyper=dict(entry.hyper)
    )


def data_paths(grid: Grid) -> Iterator[str]:
    named = [task.data for task in grid.tasks.values()]
    named += [m.calibration.data for m in grid.models.values() if m.calibration and m.calibration.data]
    for source in named:
        yield from local_paths(source)


def local_paths(source: str) -> list[str]:
    """Return the local paths that a source of data names; it may join several with ``+``."""
    parts = [source] if Path(source).expanduser().exists() else source.split("+")
    return [part for part in parts if not part.startswith(PREFIX)]


def check_models(plans: Iterable[Plan]) -> None:
    """Load every model once, and check that it fits its tasks and pruners."""
    by_model: dict[str, list[Plan]] = {}
    for plan in plans:
        by_model.setdefault(plan.cell.model, []).append(plan)
    for name, own in by_model.items():
        with named(f"model '{name}'"):
            _check_model(own)


def _check_model(plans: Sequence[Plan]) -> None:
    model = load(plans[0].model)
    load_beside(plans[0].model, model)
    for task in {plan.cell.task: plan.task for plan in plans}.values():
        assert task.kind is not None
        plan_finetuning(task.kind, model, task.training())
    prunings: Mapping[str | None, Plan] = {plan.cell.pruning: plan for plan in plans if plan.pruner}
    for plan in prunings.values():
        assert plan.pruner is not None
        with named(f"pruner '{plan.cell.pruner}'"):
            make_plan(_request(plan.pruner, plan.sparsities), model, batches=[])


def check_data(plans: Iterable[Plan], make: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
    """Open the data of every task, and the calibration data of every model that needs some, once.

    Args:
        plans: of the cells to compute.
        make: data that the grid makes and that are passed over while they are missing.
    """
    tasks: dict[tuple[str, str], TaskEntry] = {}
    models: dict[str, Plan] = {}
    for plan in plans:
        if not _is_missing(plan.task.data, make):
            tasks.setdefault((plan.cell.task, plan.task.data), plan.task)
        needs = plan.pruner is not None and plan.pruner.needs_data
        if needs and not (plan.model.calibration and _is_missing(plan.model.calibration.data, make)):
            models.setdefault(plan.cell.model, plan)
    for (name, _), task in tasks.items():
        with named(f"task '{name}'"):
            how = {"images": task.images, "skip_missing": task.skip_missing}
            trains = () if task.zero_shot else (task.training().train_split,)
            for split in (*trains, task.test_split):
                TASKS[task.kind or name].open(task.data, split, **how)
    for name, plan in models.items():
        with named(f"calibration of model '{name}'"):
            calibration_batches(plan.model, load(plan.model), plan.cell.seed)


def _is_missing(source: str | None, make: Mapping[str, Mapping[str, Any]]) -> bool:
    return source is not None and any(is_missing(path, make) for path in local_paths(source))


@contextmanager
def named(what: str) -> Iterator[None]:
    """Put what is being checked before the message of an error."""
    try:
        yield
    except MultiflowError as error:
        raise error.within(what) from error
