"""What a pruning was asked for, checked in one place for Python, the command line and the benchmark.

`request` checks what needs no model: pruner, hyper-parameters, pattern, sparsities, allocation. `make_plan` checks it
against a model and its data. Errors name the argument that is wrong as their field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, of_families
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.guards import check_device, check_module, check_seed
from multiflow.base.offload import check_readable, stored_value, working_device
from multiflow.base.parallel import world
from multiflow.base.steps import Step
from multiflow.base.types import Layout, LiveWeights, NofM, Pattern, PerRow, Unstructured, parse_pattern, short
from multiflow.calibration import STATISTICS, Checkpoint, Stats, check_precision
from multiflow.methods import PRUNER_KINDS, PRUNERS, Pruner, find_pruner
from multiflow.methods.budgets import (
    ALLOCATIONS,
    FITNESS,
    PROVIDED,
    SCHEDULES,
    Allocation,
    check_pattern,
    find_allocation,
)

Share = str | Callable[..., Mapping[str, int]]

SPARSITIES = (0.63, 0.75, 0.9)
"""The sparsities of the paper, used when none are given."""
PACKAGES = {"multiflow": "multiflow-pruning", "torch": "torch", "transformers": "transformers"}
"""What is imported -> the distribution that it is installed by."""


@dataclass(frozen=True)
class Request:
    """How to prune, whatever the model."""

    pruner: Pruner  # the method
    hyper: Mapping[str, Any]  # all its hyper-parameters
    pattern: Pattern  # which weights may go together
    allocation: Allocation  # how many go in each layer
    sparsities: tuple[float, ...]  # shares of weights to drop
    until_stable: float | None = None  # the agreement of masks at which calibration stops, or None

    @property
    def own_hyper(self) -> dict[str, Any]:
        return {name: self.hyper[name] for name in self.pruner.own_hyper}

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics that pruner and allocation need, measured on the dense model."""
        return tuple(dict.fromkeys((*self.pruner.statistics, *self.allocation.statistics)))

    @property
    def needs_data(self) -> bool:
        return self.pruner.needs_data or self.allocation.needs_data


def request(
    method: str | Callable[..., Any] | Pruner,
    sparsity: float | Sequence[float] | None = None,
    *,
    pattern: str | Pattern | None = None,
    allocation: Share | None = None,
    until_stable: float | None = None,
    hyper: Mapping[str, Any] | None = None,
) -> Request:
    """Check what `prune` is asked for as far as no model is needed; arguments as there."""
    pruner = find_pruner(method)
    settings = pruner.settings(hyper or {})
    kind = pruner.pattern if pattern is None else parse_pattern(pattern)
    sparsities = _sparsities(sparsity, kind)
    if isinstance(kind, NofM) and allocation not in (None, "uniform"):
        raise MultiflowError(
            f"pattern '{kind}' fixes the budget of every layer; leave {{allocation={allocation!r}}} out",
            field="allocation",
        )
    fixed = isinstance(kind, NofM) or (isinstance(kind, PerRow) and pattern is not None)
    share = find_allocation(allocation if allocation is not None else "uniform" if fixed else pruner.scope(settings))
    asked = Request(pruner, settings, kind, share, sparsities, until_stable)
    _check_needs(pruner, share)
    _check_allocation(asked)
    if pruner.stepwise:
        _check_schedule(asked)
    if until_stable is not None:
        _check_until_stable(until_stable, pruner, share)
    return asked


def _sparsities(sparsity: float | Sequence[float] | None, pattern: Pattern) -> tuple[float, ...]:
    """The sparsities asked for, each in [0, 1) and, for an N:M pattern, the one that it means."""
    if sparsity is None:
        return (pattern.sparsity,) if isinstance(pattern, NofM) else SPARSITIES
    several = isinstance(sparsity, Sequence | np.ndarray) and not isinstance(sparsity, str)
    given: tuple[Any, ...] = tuple(sparsity) if several else (sparsity,)  # type: ignore[arg-type]
    if not given:
        raise MultiflowError(
            "{sparsity} is an empty list; give at least one share of zeros, such as 0.75", field="sparsity"
        )
    for s in given:
        if isinstance(s, bool | str) or not isinstance(s, int | float | np.floating) or not 0 <= s < 1:
            percent = f"; did you mean {s / 100:g}?" if isinstance(s, int | float) and 1 < s < 100 else ""
            if isinstance(s, str) and (said := re.fullmatch(r"\s*(\d*\.?\d+)\s*(%?)\s*", s)):
                percent = f"; did you mean the number {float(said[1]) / (100 if said[2] else 1):g}?"
            raise MultiflowError(
                f"{{sparsity}} {s!r} is not in [0, 1); it is the share of weights to drop, such as 0.75{percent}",
                field="sparsity",
            )
        if isinstance(pattern, NofM) and not math.isclose(s, pattern.sparsity, abs_tol=1e-3):
            raise MultiflowError(
                f"pattern '{pattern}' means sparsity {pattern.sparsity:g}, not {s:g}; leave {{sparsity}} out",
                field="sparsity",
            )
    sparsities = tuple(dict.fromkeys(map(float, given)))
    if len({short(s) for s in sparsities}) < len(sparsities):  # their files would have one name
        raise MultiflowError(
            f"of sparsities {', '.join(map(repr, sparsities))} two are the same to six digits; drop one",
            field="sparsity",
        )
    return sparsities


def _check_needs(pruner: Pruner, allocation: Allocation) -> None:
    """Refuse what asks for something that nobody brings, by a keyword without a default."""
    kind = PRUNER_KINDS[pruner.kind]
    wishes = (
        (f"pruner '{pruner.name}'", pruner.needs, (*(STATISTICS if kind.statistics else ()), *kind.keywords)),
        (f"allocation '{allocation.name}'", allocation.needs, (*PROVIDED, FITNESS, *STATISTICS)),
    )
    for who, needs, known in wishes:
        for name in needs:
            if name not in known:
                whom = f"no {pruner.kind}" if who.startswith("pruner") else "no allocation"
                raise MultiflowError(
                    f"{who} needs '{name}', which {whom} is given; there are: {', '.join(known)} "
                    "(a hyper-parameter needs a default)"
                )


def _check_allocation(asked: Request) -> None:
    pruner, allocation, kind = asked.pruner, asked.allocation, PRUNER_KINDS[asked.pruner.kind]
    if kind.shares_out and not (isinstance(asked.pattern, Unstructured) and _ranks_all(asked)):
        raise MultiflowError(
            f"pruner '{pruner.name}' shares the sparsity out itself, whatever the pattern; leave {{pattern}} and "
            "{allocation} out",
            field=["pattern", "allocation"],
        )
    if kind.budgets_first and "scores" in allocation.needs:
        raise MultiflowError(
            f"pruner '{pruner.name}' needs the budget of a layer before it scores it, which allocation "
            f"'{allocation.name}' cannot give; pass {{allocation='uniform'}}, 'multimodal' or a function that takes no "
            "scores",
            field="allocation",
        )
    if allocation.searches:
        _check_search(asked)
    if allocation.statistics and not pruner.shares_pass:
        raise MultiflowError(
            f"allocation '{allocation.name}' needs {', '.join(allocation.statistics)} of the dense model, but pruner "
            f"'{pruner.name}' measures the model as it is pruned by then; choose another {{allocation}}",
            field="allocation",
        )


def _check_search(asked: Request) -> None:
    pruner, name, field = asked.pruner, asked.allocation.name, "allocation"
    if pruner.kind not in ("scorer", "fitter") or pruner.stepwise:
        fit = ", ".join(n for n, of in PRUNERS.items() if of.kind in ("scorer", "fitter") and not of.stepwise)
        raise MultiflowError(
            f"allocation '{name}' tries many budgets out, for which each layer must be pruned by itself, and pruner "
            f"'{pruner.name}' does not; leave {{allocation}} out, or take one of: {fit}",
            field=field,
        )
    if asked.until_stable is not None:
        raise MultiflowError(
            f"{{until_stable}} makes masks at every doubling, and allocation '{name}' would search anew for each; "
            "leave one of them out",
            field=["until_stable", field],
        )


def _check_schedule(asked: Request) -> None:
    hyper = asked.hyper
    for name in ("steps", "batches_per_step"):
        if isinstance(hyper[name], bool) or not isinstance(hyper[name], int) or hyper[name] < 1:
            raise MultiflowError(
                f"{{{name}}} {hyper[name]!r} was given; expected a whole number of at least 1", field=name
            )
    if hyper["schedule"] not in SCHEDULES:
        raise unknown("schedule", hyper["schedule"], SCHEDULES)
    if isinstance(asked.pattern, NofM) and hyper["steps"] > 1:
        raise MultiflowError(
            f"pattern '{asked.pattern}' cannot be reached in steps; pass {{steps=1}}, or another method", field="steps"
        )


def _check_until_stable(share: Any, pruner: Pruner, allocation: Allocation) -> None:
    field = "until_stable"
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise MultiflowError(
            f"{{until_stable}} {share!r} was given; expected the share of the kept weights that is to agree, "
            "in (0, 1], such as 0.995",
            field=field,
        )
    if pruner.never_settles:
        fit = ", ".join(name for name, record in PRUNERS.items() if not record.never_settles)
        raise MultiflowError(
            f"{{until_stable}} watches the masks of one running calibration, but pruner '{pruner.name}' "
            f"{pruner.never_settles}; leave {{until_stable}} out, or take one of: {fit}",
            field=field,
        )
    if more := [name for name in allocation.statistics if name not in pruner.statistics]:
        raise MultiflowError(
            f"{{until_stable}} watches one statistic, but allocation '{allocation.name}' needs {', '.join(more)} too; "
            "leave {until_stable} out, or choose another {allocation}",
            field=[field, "allocation"],
        )
    if world() > 1:
        raise MultiflowError(
            f"{{until_stable}} works in one process, and there are {world()}; start one, or leave {{until_stable}} out",
            field=field,
        )


def _ranks_all(asked: Request) -> bool:
    return asked.allocation is ALLOCATIONS["global"]


class Weights(Mapping[str, Tensor]):
    """Layer name -> its weight, detached, in float32 or better, converted when looked up.

    ``parameters`` are the weights as the model holds them: parameters, or views of such that hold several. One that
    accelerate keeps elsewhere is read when it is looked up, and kept by whoever did.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = LiveWeights(model, layout)

    def __getitem__(self, name: str) -> Tensor:
        weight = self.value(name)
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def value(self, name: str) -> Tensor:
        """Return a weight as it is stored, detached, on the device where its layer computes."""
        weight = self.parameters[name].detach()
        if not weight.is_meta:
            return weight
        found = self._stored(name)
        if found is None:
            check_readable(self._modules, {name: weight})
        assert found is not None
        return found.detach().to(self.device(name), weight.dtype)

    def _stored(self, name: str) -> Tensor | None:
        place = self.parameters.places[name]
        found = stored_value(self._modules, place.path, place.parameter)
        return found if found is None or place.part is None else place.part.view(found)

    def device(self, name: str) -> torch.device:
        """Return the device where a layer computes."""
        return working_device(self._modules, self.parameters.places[name].path, self.parameters[name])

    def check(self, *, in_memory: str | None = None) -> None:
        """Refuse weights without values, on devices without float64, and offloaded ones for what cannot do with them.

        Args:
            in_memory: who needs all weights in memory, as an error begins; None if nobody does.
        """
        for name, weight in self.parameters.items():
            if weight.is_meta and in_memory and self._stored(name) is not None:
                raise MultiflowError(
                    f"{in_memory} needs all weights in memory, and that of layer '{name}' is offloaded; take a method "
                    "of one pass without gradients, such as multiflow, wanda or lobs, or load the whole model"
                )
        check_readable(self._modules, self.parameters)
        for name in self.parameters:
            check_device(name, self.device(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


@dataclass(frozen=True)
class PruningPlan:
    """A pruning run, checked."""

    request: Request  # how to prune
    model: nn.Module  # what to prune; left as it is
    adapter: Adapter  # how to run it
    layout: Layout  # its layers
    weights: Weights  # their weights
    seed: int = 0  # of whatever is random
    batches: Iterable[Any] | Stats | None = None  # calibration batches, statistics measured before, or None
    checkpoint: Checkpoint | None = None  # where a killed run goes on
    progress: Step | None = None  # told of every step

    @property
    def pruner(self) -> Pruner:
        """The method."""
        return self.request.pruner

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Shares of weights to drop."""
        return self.request.sparsities

    @property
    def ranks_all(self) -> bool:
        """Whether the scores of all layers are ranked together."""
        return _ranks_all(self.request)

    def progress_of(self, sparsity: float) -> Step | None:
        """Return what to tell of the work for one sparsity, of methods that work anew for each: it counts them all."""
        if self.progress is None:
            return None
        tell, before, of = self.progress, self.sparsities.index(sparsity), len(self.sparsities)

        def tell_of_all(what: str, done: int, total: int | None) -> None:
            if total is None:
                tell(what, done, None)
            else:
                tell(what, before * total + done, of * total)

        return tell_of_all

    def record(self, batches: int) -> dict[str, Any]:
        """Settings as results and mask files tell them, with the number of batches that were taken."""
        asked = self.request
        return {
            "method": self.pruner.name,
            "hyper": dict(asked.hyper),
            "pattern": str(asked.pattern),
            "allocation": asked.allocation.name,
            "seed": self.seed,
            "batches": batches,
            "adapter": self.adapter.name,
            "model": type(self.model).__name__,
            **base_model(self.model),
            "versions": versions(),
            **({"changes_weights": True} if self.pruner.changes_weights else {}),
            **({} if asked.until_stable is None else {"until_stable": asked.until_stable}),
        }


def make_plan(
    asked: Request,
    model: nn.Module,
    batches: Iterable[Any] | Stats | None = None,
    *,
    adapter: Adapter | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Step | None = None,
) -> PruningPlan:
    """Check a request against a model and its data, without running the model.

    Raises:
        MultiflowError: the model has no adapter, its weights or layers do not suit the request, or the data do not.
    """
    check_seed(seed)
    adapter = find_adapter(model, adapter)
    layout = adapter.layout(model)
    weights = Weights(model, layout)
    pruner = asked.pruner
    one_pass = pruner.shares_pass and (isinstance(batches, Stats) or not takes_gradients(asked))
    weights.check(in_memory=None if one_pass else f"pruner '{pruner.name}'")
    check_pattern(asked.pattern, layout)
    _check_batches(asked, batches)
    if pruner.takes_gradients and not isinstance(batches, Stats):
        check_loss(adapter)
        check_precision(weights.parameters)
    return PruningPlan(asked, model, adapter, layout, weights, seed, batches, checkpoint, progress)


def takes_gradients(asked: Request) -> bool:
    """Whether the model is run backwards, for the pruner or for the allocation."""
    return asked.pruner.takes_gradients or "gradient" in asked.allocation.statistics


def find_adapter(model: nn.Module, given: Adapter | None) -> Adapter:
    check_module(model)
    if given is not None and not isinstance(given, Adapter):
        raise MultiflowError(f"adapter is a {type(given).__name__}; expected an mf.Adapter(groups={{...}})")
    return given or of_families("family:adapter_for")(model)


def check_loss(adapter: Adapter) -> None:
    if adapter.loss is None:
        raise MultiflowError(f"adapter '{adapter.name}' has no loss, which gradients need; pass Adapter(loss=...)")


def _check_batches(asked: Request, batches: Iterable[Any] | Stats | None) -> None:
    pruner = asked.pruner
    if asked.needs_data and batches is None:
        raise MultiflowError(
            f"pruner '{pruner.name}' needs calibration data; pass {{batches=}}, an iterable of batches", field="batches"
        )
    if not pruner.shares_pass and isinstance(batches, Stats):
        raise MultiflowError(
            f"pruner '{pruner.name}' runs the model anew in every step; pass batches, not statistics", field="batches"
        )
    if not pruner.shares_pass and isinstance(batches, Iterator) and len(asked.sparsities) > 1:
        raise MultiflowError(
            f"pruner '{pruner.name}' begins anew for each of {len(asked.sparsities)} sparsities, but batches is a "
            f"{type(batches).__name__}, which can be gone through once; pass a list or a DataLoader",
            field="batches",
        )
    if asked.allocation.searches and isinstance(batches, Stats | Iterator):
        what = "statistics measured before" if isinstance(batches, Stats) else "batches that can be gone through once"
        raise MultiflowError(
            f"allocation '{asked.allocation.name}' runs the model on the data after they were measured, and {what} "
            "were given; pass {batches} that can be gone through again, such as a list",
            field="batches",
        )
    if asked.until_stable is not None and isinstance(batches, Stats):
        raise MultiflowError(
            "{until_stable} watches the masks while batches are measured, but statistics measured before were given; "
            "pass the batches themselves, or leave {until_stable} out",
            field="until_stable",
        )


def base_model(model: nn.Module) -> dict[str, str]:
    """Name where a model comes from: its id on the Hub, or the last part of its path; nothing where it does not say."""
    place = str(getattr(model, "name_or_path", "") or "")
    name = Path(place).name if place.count("/") != 1 or Path(place).exists() else place
    return {"base_model": name} if name else {}


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a result is."""
    found = {}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
