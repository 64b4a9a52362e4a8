"""What makes a cell the cell it is: the settings on which its figures depend, and their hash.

Settings at their defaults are left out, so that an option that comes with a later version changes no id. So are device,
engine, number of processes and all output folders. A model counts by the bytes of its weights, a config and a tokenizer
that are given with it by their bytes if they lie on this machine, data that the config makes by how they are made,
other data by their path, and a pruner of the user's own by its source text.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiflow.base.runs import identity
from multiflow.base.strict import changed
from multiflow.bench.config import Calibration, Grid, ModelEntry, PrunerEntry, TaskEntry
from multiflow.bench.make import made_settings
from multiflow.bench.sources import find_model
from multiflow.methods import find_pruner
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
