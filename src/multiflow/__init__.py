"""multiflow: prune a vision-language model once, for every task.

import multiflow as mf

model = mf.load_model("path/to/model")
result = mf.prune(model, "multiflow", sparsity=[0.63, 0.75, 0.9], batches=batches)
result.apply_(model, 0.75)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiflow import metrics
    from multiflow.base.adapter import Adapter
    from multiflow.base.errors import MultiflowError
    from multiflow.base.types import Budget, Layer, Layout, NofM, Pattern, PerRow, Unstructured
    from multiflow.calibration import Checkpoint, Stats
    from multiflow.families import adapter_for, original_names
    from multiflow.families.batches import calibration_batches
    from multiflow.families.opening import load_model, open_streamed
    from multiflow.formats import compact, export, sparse_runtime, speed, unpack
    from multiflow.masks import Masks, keep_sparse
    from multiflow.masks.trainer import KeepSparse
    from multiflow.methods import PRUNERS, STEPWISE, fitter, learner, scorer, solver, variant
    from multiflow.methods.budgets import ALLOCATIONS
    from multiflow.pruning import calibrate, prune
    from multiflow.pruning.comparison import Comparison, compare_pruners
    from multiflow.pruning.fitter import estimate
    from multiflow.pruning.result import Result
    from multiflow.pruning.stream import prune_streamed
    from multiflow.pruning.structured import prune_units
    from multiflow.recovery import recover
    from multiflow.tasks.task_model import build_task_model, task_masks, task_model

__version__ = "0.1.0"
DISTRIBUTION = "multiflow-pruning"  # the name to install by: "multiflow" on PyPI is another project

_HOMES = {
    "base.adapter": ("Adapter",),
    "calibration": ("Checkpoint", "Stats"),
    "base.errors": ("MultiflowError",),
    "masks": ("Masks", "keep_sparse"),
    "masks.trainer": ("KeepSparse",),
    "families": ("adapter_for", "original_names"),
    "families.batches": ("calibration_batches",),
    "families.opening": ("load_model", "open_streamed"),
    "formats": ("compact", "export", "sparse_runtime", "speed", "unpack"),
    "methods": ("PRUNERS", "STEPWISE", "fitter", "learner", "scorer", "solver", "variant"),
    "methods.budgets": ("ALLOCATIONS",),
    "pruning": ("calibrate", "prune"),
    "pruning.comparison": ("Comparison", "compare_pruners"),
    "pruning.fitter": ("estimate",),
    "pruning.result": ("Result",),
    "pruning.stream": ("prune_streamed",),
    "pruning.structured": ("prune_units",),
    "recovery": ("recover",),
    "tasks.task_model": ("build_task_model", "task_masks", "task_model"),
    "base.types": ("Budget", "Layer", "Layout", "NofM", "Pattern", "PerRow", "Unstructured"),
}
"""Module -> the public names it holds: imported when first used, so that ``multiflow --help`` needs no torch."""

_MODULES = ("metrics",)
"""Modules whose names are reached through them: ``mf.metrics.vqa_accuracy``."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"multiflow.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'multiflow' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"multiflow.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def list_pruners() -> dict[str, str]:
    """Name every pruner, with one line on what it does.

    >>> "multiflow" in list_pruners()
    True
    """
    from multiflow.methods import PRUNERS

    return {name: pruner.summary for name, pruner in PRUNERS.items()}


__all__ = [
    "ALLOCATIONS",
    "PRUNERS",
    "STEPWISE",
    "Adapter",
    "Budget",
    "Checkpoint",
    "Comparison",
    "KeepSparse",
    "Layer",
    "Layout",
    "Masks",
    "MultiflowError",
    "NofM",
    "Pattern",
    "PerRow",
    "Result",
    "Stats",
    "Unstructured",
    "adapter_for",
    "build_task_model",
    "calibrate",
    "calibration_batches",
    "compact",
    "compare_pruners",
    "estimate",
    "export",
    "fitter",
    "keep_sparse",
    "learner",
    "list_pruners",
    "load_model",
    "metrics",
    "open_streamed",
    "original_names",
    "prune",
    "prune_streamed",
    "prune_units",
    "recover",
    "scorer",
    "solver",
    "sparse_runtime",
    "speed",
    "task_masks",
    "task_model",
    "unpack",
    "variant",
]
