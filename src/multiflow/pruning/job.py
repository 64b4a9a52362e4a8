"""What a pruning run was asked for, checked before anything is computed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from multiflow.base.adapter import Adapter, of_families
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.guards import check_device, check_values
from multiflow.base.types import Layout, NofM, Pattern, PerRow, Unstructured
from multiflow.calibration import STATISTICS, Checkpoint, Progress, Stats, check_precision
from multiflow.methods import PROVIDED, STEPWISE, Pruner
from multiflow.methods.budgets import SCHEDULES, check_pattern, find_allocation
from multiflow.pruning.result import Weights, short, versions

Share = str | Callable[..., Mapping[str, int]]

SPARSITIES = (0.63, 0.75, 0.9)
"""The sparsities of the paper, used when none are given."""


@dataclass(frozen=True)
class Job:
    """A pruning run.

    Args:
        model: what to prune; left as it is.
        adapter: how to run it.
        layout: its layers.
        weights: their weights.
        pruner: the method.
        hyper: all its hyper-parameters.
        pattern: which weights may go together.
        allocation: how many go in each layer.
        sparsities: shares of weights to drop.
        seed: of whatever is random.
        batches: calibration batches, statistics measured before, or None.
        checkpoint: where a killed run goes on.
        progress: told of every step.
        until_stable: the agreement of masks at which calibration stops, or None.
    """

    model: nn.Module
    adapter: Adapter
    layout: Layout
    weights: Weights
    pruner: Pruner
    hyper: Mapping[str, Any]
    pattern: Pattern
    allocation: Share
    sparsities: tuple[float, ...]
    seed: int = 0
    batches: Iterable[Any] | Stats | None = None
    checkpoint: Checkpoint | None = None
    progress: Progress | None = None
    until_stable: float | None = None

    @property
    def own_hyper(self) -> dict[str, Any]:
        """The hyper-parameters that the pruner's function takes, without those of the schedule."""
        schedule = STEPWISE if self.pruner.stepwise else ()
        return {name: value for name, value in self.hyper.items() if name not in schedule}

    @property
    def allocation_name(self) -> str:
        """The name of the allocation, also of one that is a function."""
        return self.allocation if isinstance(self.allocation, str) else getattr(self.allocation, "__name__", "custom")

    def progress_of(self, sparsity: float) -> Progress | None:
        """Return what to tell of the work for one sparsity, of methods that work anew for each: it counts them all."""
        if self.progress is None:
            return None
        tell, before, of = self.progress, self.sparsities.index(sparsity), len(self.sparsities)

        def told(what: str, done: int, total: int | None) -> None:
            if total is None:
                tell(what, done, None)
            else:
                tell(what, before * total + done, of * total)

        return told

    def record(self, batches: int) -> dict[str, Any]:
        """Settings as results and mask files tell them, with the number of batches that were taken."""
        return {
            "method": self.pruner.name,
            "hyper": dict(self.hyper),
            "pattern": str(self.pattern),
            "allocation": self.allocation_name,
            "seed": self.seed,
            "batches": batches,
            "adapter": self.adapter.name,
            "model": type(self.model).__name__,
            "versions": versions(),
            **({"changes_weights": True} if self.pruner.changes_weights else {}),
            **({} if self.until_stable is None else {"until_stable": self.until_stable}),
        }


def check_job(job: Job) -> Job:
    """Check what can be checked without running the model; return the job."""
    pruner = job.pruner
    check_values(job.weights.parameters)
    check_device(job.weights.parameters)
    known = (*(STATISTICS if pruner.kind in ("scorer", "fitter") else ()), *PROVIDED[pruner.kind])
    check_pattern(job.pattern, job.layout)
    for name in pruner.needs:
        if name not in known:
            raise MultiflowError(
                f"pruner '{pruner.name}' needs '{name}', which no {pruner.kind} is given; there are: "
                f"{', '.join(known)} (a hyper-parameter needs a default)"
            )
    if pruner.needs_data and job.batches is None:
        raise MultiflowError(f"pruner '{pruner.name}' needs calibration data; pass batches=, an iterable of batches")
    if pruner.stepwise or pruner.kind == "learner":
        if isinstance(job.batches, Stats):
            raise MultiflowError(
                f"pruner '{pruner.name}' runs the model anew in every step; pass batches, not statistics"
            )
        if isinstance(job.batches, Iterator) and len(job.sparsities) > 1:
            raise MultiflowError(
                f"pruner '{pruner.name}' begins anew for each of {len(job.sparsities)} sparsities, but batches is a "
                f"{type(job.batches).__name__}, which can be gone through once; pass a list or a DataLoader"
            )
    gradients = pruner.kind in ("solver", "learner") or "gradient" in pruner.statistics
    if gradients and not isinstance(job.batches, Stats):
        if job.adapter.loss is None:
            raise no_loss(job.adapter)
        check_precision(job.weights.parameters)
    if pruner.kind == "fitter" and _ranks_scores(job.allocation):
        raise MultiflowError(
            f"pruner '{pruner.name}' needs the budget of a layer before it scores it, which allocation "
            f"'{job.allocation_name}' cannot give; pass allocation='uniform', 'multimodal' or a function that takes no "
            "scores"
        )
    if pruner.stepwise:
        _check_schedule(job)
    return job


def _ranks_scores(allocation: Share) -> bool:
    return allocation == "global" or (callable(allocation) and "scores" in inspect.signature(allocation).parameters)


def no_loss(adapter: Adapter) -> MultiflowError:
    """Return the error of an adapter that lacks what gradients need."""
    return MultiflowError(f"adapter '{adapter.name}' has no loss, which gradients need; pass Adapter(loss=...)")


def _check_schedule(job: Job) -> None:
    for name in ("steps", "batches_per_step"):
        value = job.hyper[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MultiflowError(f"{name} {value!r} was given; expected a whole number of at least 1")
    if job.hyper["schedule"] not in SCHEDULES:
        raise unknown("schedule", job.hyper["schedule"], SCHEDULES)
    if isinstance(job.pattern, NofM) and job.hyper["steps"] > 1:
        raise MultiflowError(f"pattern '{job.pattern}' cannot be reached in steps; pass steps=1, or another method")
    if job.pruner.kind == "solver" and not (isinstance(job.pattern, Unstructured) and job.allocation == "global"):
        raise MultiflowError(
            f"pruner '{job.pruner.name}' shares the sparsity out itself, whatever the pattern; leave pattern and "
            "allocation out"
        )


def find_adapter(model: nn.Module, given: Adapter | None) -> Adapter:
    """Return the adapter given, or that of the model's family."""
    if given is not None and not isinstance(given, Adapter):
        raise MultiflowError(f"adapter is a {type(given).__name__}; expected an mf.Adapter(groups={{...}})")
    return given or of_families("adapter_for")(model)


def check_sparsities(sparsity: float | Sequence[float] | None, pattern: Pattern) -> tuple[float, ...]:
    """Return the sparsities asked for, each in [0, 1) and, for an N:M pattern, the one that it means."""
    if sparsity is None:
        return (pattern.sparsity,) if isinstance(pattern, NofM) else SPARSITIES
    several = isinstance(sparsity, Sequence | np.ndarray) and not isinstance(sparsity, str)
    given: tuple[Any, ...] = tuple(sparsity) if several else (sparsity,)  # type: ignore[arg-type]
    if not given:
        raise MultiflowError("sparsity is an empty list; give at least one share of zeros, such as 0.75")
    for s in given:
        if isinstance(s, bool | str) or not isinstance(s, int | float | np.floating) or not 0 <= s < 1:
            percent = f"; did you mean {s / 100:g}?" if isinstance(s, int | float) and 1 < s < 100 else ""
            raise MultiflowError(
                f"sparsity {s!r} is not in [0, 1); it is the share of weights to drop, such as 0.75{percent}"
            )
        if isinstance(pattern, NofM) and not math.isclose(s, pattern.sparsity, abs_tol=1e-3):
            raise MultiflowError(
                f"pattern '{pattern}' means sparsity {pattern.sparsity:g}, not {s:g}; leave sparsity out"
            )
    sparsities = tuple(dict.fromkeys(map(float, given)))
    if len({short(s) for s in sparsities}) < len(sparsities):  # their files would have one name
        raise MultiflowError(
            f"of sparsities {', '.join(map(repr, sparsities))} two are the same to six digits; drop one"
        )
    return sparsities


def choose_allocation(
    pruner: Pruner, hyper: Mapping[str, Any], kind: Pattern, given: Share | None, *, own_pattern: bool
) -> Share:
    """Give the allocation asked for, the method's own, or ``uniform`` under a pattern that fixes the budgets."""
    if given is not None:
        find_allocation(given)
        if isinstance(kind, NofM) and given != "uniform":
            raise MultiflowError(f"pattern '{kind}' fixes the budget of every layer; leave allocation={given!r} out")
        return given
    fixed = isinstance(kind, NofM) or (isinstance(kind, PerRow) and not own_pattern)
    return "uniform" if fixed else pruner.scope(hyper)
