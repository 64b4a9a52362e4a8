"""What is wrong with a grid, found before anything is computed."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from multiflow.adapters import adapter_for
from multiflow.bench.config import Grid, PrunerEntry, TaskEntry
from multiflow.bench.grid import Plan
from multiflow.bench.make import made_settings
from multiflow.bench.sources import calibration_batches, load, load_beside
from multiflow.data.huggingface import PREFIX
from multiflow.errors import MultiflowError, unknown
from multiflow.models.task_models import find_builder
from multiflow.pipeline.job import Job, check_job, check_sparsities, choose_allocation, no_loss
from multiflow.pruners import find_pruner
from multiflow.result import Weights
from multiflow.tasks.base import TASKS
from multiflow.tasks.finetune_settings import adjust
from multiflow.tasks.presets import find_preset
from multiflow.types import parse_pattern

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


def import_modules(modules: Iterable[str]) -> None:
    """Import Python files and modules, so that the pruners in them are registered.

    Raises:
        MultiflowError: there is no such file or module, or it fails.
    """
    for name in modules:
        try:
            _import(name)
        except MultiflowError:
            raise
        except Exception as error:
            raise MultiflowError(
                f"module '{name}' cannot be imported ({type(error).__name__}: {error}); give a Python file or the name "
                "of a module"
            ) from error


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).resolve()
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path):
        return
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise MultiflowError(f"module '{name}' is no Python file; give one")
    sys.modules[path.stem] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


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
                    _job_settings(entry, tier.sparsities)
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


def _job_settings(entry: PrunerEntry, sparsities: Sequence[float]) -> dict[str, Any]:
    """Return what a pruning job asks for, checked."""
    pruner = find_pruner(entry.method)
    hyper = pruner.settings(entry.hyper)
    pattern = pruner.pattern if entry.pattern is None else parse_pattern(entry.pattern)
    return {
        "pruner": pruner,
        "hyper": hyper,
        "pattern": pattern,
        "allocation": choose_allocation(pruner, hyper, pattern, entry.allocation, own_pattern=entry.pattern is None),
        "sparsities": check_sparsities(sparsities, pattern),
    }


def data_paths(grid: Grid) -> Iterator[str]:
    """Yield the local paths of the data that tasks and calibrations name."""
    named = [task.data for task in grid.tasks.values()]
    named += [m.calibration.data for m in grid.models.values() if m.calibration and m.calibration.data]
    for source in named:
        for path in [source] if Path(source).expanduser().exists() else source.split("+"):
            if not path.startswith(PREFIX):
                yield path


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
        find_builder(model, task.kind)
        settings = task.training()
        adjust(find_preset(settings.preset, model, task.kind), settings)
    adapter = adapter_for(model)
    layout = adapter.layout(model)
    prunings: Mapping[str | None, Plan] = {plan.cell.pruning: plan for plan in plans if plan.pruner}
    for plan in prunings.values():
        assert plan.pruner is not None
        with named(f"pruner '{plan.cell.pruner}'"):
            asked = _job_settings(plan.pruner, plan.sparsities)
            check_job(Job(model, adapter, layout, Weights(model, layout), **asked, batches=[]))
            if "gradient" in asked["pruner"].statistics and adapter.loss is None:
                raise no_loss(adapter)


def check_data(plans: Iterable[Plan]) -> None:
    """Open the data of every task, and the calibration data of every model that needs some, once."""
    tasks: dict[tuple[str, str], TaskEntry] = {}
    models: dict[str, Plan] = {}
    for plan in plans:
        tasks.setdefault((plan.cell.task, plan.task.data), plan.task)
        if plan.pruner and find_pruner(plan.pruner.method).needs_data:
            models.setdefault(plan.cell.model, plan)
    for (name, _), task in tasks.items():
        with named(f"task '{name}'"):
            how = {"images": task.images, "skip_missing": task.skip_missing}
            for split in (task.training().train_split, task.test_split):
                TASKS[task.kind or name].open(task.data, split, **how)
    for name, plan in models.items():
        with named(f"calibration of model '{name}'"):
            calibration_batches(plan.model, load(plan.model), plan.cell.seed)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Put what is being checked before the message of an error."""
    try:
        yield
    except MultiflowError as error:
        raise MultiflowError(f"{what}: {error}") from error
