"""What makes a cell the cell it is: the settings on which its figures depend, and their hash.

Settings at their defaults are left out, so that an option that comes with a later version changes no id. So are device,
engine, number of processes and all output folders. A model counts by the bytes of its weights, data that the config
makes by how they are made, other data by their path, and a pruner of the user's own by its source text.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiflow.bench.config import Calibration, Grid, ModelEntry, PrunerEntry, TaskEntry
from multiflow.bench.make import made_settings
from multiflow.bench.sources import find_model
from multiflow.bench.strict import changed
from multiflow.pruners import find_pruner
from multiflow.tasks.finetune import FREE_TO_CHANGE

DIGITS = 16
WEIGHTS = ("config.json", "*.safetensors", "*.bin", "*.pth", "*.th", "*.pt")


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Hash settings, in whatever order they come: sixteen hexadecimal digits.

    >>> hash_settings({"b": 1, "a": 2}) == hash_settings({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]


def model_settings(model: ModelEntry) -> dict[str, Any]:
    """Return what a model is: its weights by their hash, or the id of one that is not on this machine."""
    rest = changed(model, ("source", "tasks", "calibration"))
    place = Path(find_model(model.source))
    if not place.exists():
        return {"source": model.source, **rest}
    files = [place] if place.is_file() else sorted({file for name in WEIGHTS for file in place.glob(name)})
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"weights": digest.hexdigest()[:DIGITS], **rest}


def data_settings(path: str, grid: Grid) -> Any:
    """Return what data are: how the config makes them, or where they lie."""
    return made_settings(path, grid.make) or path


def calibration_settings(calibration: Calibration, grid: Grid) -> dict[str, Any]:
    """Return what the calibration data of a model are."""
    settings = changed(calibration, ("workers",))
    return {**settings, "data": data_settings(calibration.data, grid)} if calibration.data else settings


def task_settings(task: TaskEntry, grid: Grid) -> dict[str, Any]:
    """Return what a task is for one model, as `TaskEntry.of` gives it."""
    training = changed(task.training(), (*FREE_TO_CHANGE, "data", "images"))
    return {**changed(task, ("skip_missing",)), "data": data_settings(task.data, grid), "finetune": training}


def pruner_settings(entry: PrunerEntry) -> dict[str, Any]:
    """Return what a pruner is: its record, and of one that is not the library's the text of its function."""
    pruner = find_pruner(entry.method)
    given = pruner.settings(entry.hyper)
    hyper = {name: value for name, value in given.items() if value != pruner.hyper[name]}
    settings: dict[str, Any] = {**changed(entry, ("hyper",)), **({"hyper": hyper} if hyper else {})}
    if not pruner.function.__module__.startswith("multiflow."):
        settings["code"] = hashlib.sha256(inspect.getsource(pruner.function).encode()).hexdigest()[:DIGITS]
    return settings
