"""How a pruner is declared: one small function whose signature says what it needs.

Keyword arguments without a default are the statistics it needs, keyword arguments with a default are its
hyper-parameters. There are four kinds. A *scorer* is a pure function of one layer's weight, a *fitter* one that also
changes what it keeps, a *solver* chooses masks and new weights of all layers together, a *learner* runs the model::

    @scorer(allocation="uniform")
    def wanda(weight, *, input_norm):
        return weight.abs() * input_norm

    @solver
    def chita(weights, count, select, *, gradient_rows, batch_samples, ridge=1e-5):
        return masks, new_weights

    @fitter(allocation="uniform")
    def refit(weight, choose, *, input_moment, ridge=1e-2):
        mask = choose(weight.abs())
        return mask, new_weight

    @learner(allocation="uniform")
    def tamt(model, weights, loss, select, *, lr=5e-5, steps=3000):
        return scores

A scorer or solver that is registered with `STEPWISE` hyper-parameters is repeated along a schedule, each time measured
on the model as it is pruned by then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.registry import Registry
from multiflow.base.types import Pattern, parse_pattern
from multiflow.methods.hyper import typed
from multiflow.methods.signature import check_positional, taken

Function = Callable[..., Any]
Kind = Literal["scorer", "fitter", "solver", "learner"]
Choose = Callable[..., Tensor]
"""``f(scores, done=1.0) -> mask``: drop a layer's lowest scores, as many as its budget says once ``done`` is 1."""

PROVIDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "scorer": ("generator",),
        "fitter": (),
        "solver": ("gradient_rows", "batch_samples"),
        "learner": ("sparsity", "seed", "checkpoint", "progress"),
    }
)
"""Keywords that are no statistics and come from the pipeline itself, by the kind of the pruner.

``generator``: a ``torch.Generator`` seeded by the run's seed and the layer's name. For solvers, ``gradient_rows`` and
``batch_samples``: the gradient of each batch, and the mean number of samples in one. For learners, ``sparsity``,
``seed``, ``checkpoint`` (or None) and ``progress`` (or None).
"""

STEPWISE: Mapping[str, Any] = MappingProxyType({"steps": 60, "batches_per_step": 50, "schedule": "exp"})
"""Hyper-parameters of the schedule, which the pipeline reads: steps, batches measured in each, growth of sparsity."""

MEASURED: Mapping[str, tuple[str, ...]] = {"solver": ("gradient of each batch",), "learner": ("loss",)}
"""What the pipeline runs the model for, by the kind of the pruner, beside statistics."""

SCOPES = {"layer": "uniform", "global": "global"}
"""What a hyper-parameter ``threshold`` means as an allocation."""


@dataclass(frozen=True)
class Pruner:
    """A pruner as a record: its function, and what the pipeline must bring to it.

    Args:
        name: how users call it.
        kind: ``scorer``, ``fitter``, ``solver`` or ``learner``; it says what ``function`` is.
        function: a scorer is ``f(weight, *, <statistics>, <hyper-parameters>) -> scores``, of the weight's shape, of
            which low ones go. A fitter is ``f(weight, choose, *, ...) -> (mask, new weight)``, with ``choose`` as
            `Choose` says. A solver is ``f(weights, count, select, *, ...) -> (masks, new weights)``: ``count``
            weights to drop in all, and ``select(scores, count) -> masks`` does that exactly. A learner is
            ``f(model, weights, loss, select, *, ...) -> scores``: ``weights`` are the layers' parameters, ``loss()``
            is the loss of the model on the next batch, ``select(scores) -> masks`` drops at the sparsity asked for.
        summary: one line for lists.
        needs: names of the statistics it needs.
        hyper: its hyper-parameters with their defaults.
        allocation: name of the allocation it uses unless told otherwise.
        pattern: the pattern it uses unless told otherwise.
        check: ``f(<hyper-parameters it looks at>)``, which raises where one is out of range; called before anything is
            computed.
    """

    name: str
    kind: Kind
    function: Function
    summary: str
    needs: tuple[str, ...]
    hyper: Mapping[str, Any]
    allocation: str
    pattern: Pattern
    check: Function | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics it needs from calibration data."""
        return tuple(name for name in self.needs if name not in PROVIDED[self.kind])

    @property
    def stepwise(self) -> bool:
        """Whether it runs along a schedule, measuring anew in every step."""
        return self.kind != "learner" and self.hyper.keys() >= STEPWISE.keys()

    @property
    def needs_data(self) -> bool:
        """Whether it needs calibration data at all."""
        return bool(self.statistics) or self.stepwise or self.kind == "learner"

    @property
    def looks_at(self) -> tuple[str, ...]:
        """What it takes from calibration data, in words: statistics, or what its kind runs the model for."""
        return (*self.statistics, *MEASURED.get(self.kind, ()))

    @property
    def one_pass(self) -> bool:
        """Whether one measurement serves it at every sparsity."""
        return self.kind == "scorer" and not self.stepwise

    @property
    def changes_weights(self) -> bool:
        """Whether it changes the weights that it keeps."""
        return self.kind in ("fitter", "solver")

    def scope(self, hyper: Mapping[str, Any]) -> str:
        """Return the allocation it uses with these hyper-parameters, unless told otherwise."""
        if "threshold" not in hyper:
            return self.allocation
        if hyper["threshold"] not in SCOPES:
            raise unknown("threshold", hyper["threshold"], SCOPES)
        return SCOPES[hyper["threshold"]]

    def call(self, *args: Any, **keywords: Any) -> Any:
        """Call the function with those keywords that it takes."""
        return self.function(*args, **taken(self.function, keywords))

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Merge hyper-parameters over the defaults; an unknown one, or one out of range, is an error that names it."""
        for name in given:
            if name not in self.hyper:
                known = ", ".join(self.hyper) or "none"
                raise MultiflowError(
                    f"pruner '{self.name}' has no hyper-parameter '{name}'; it has: {known}"
                    f"{did_you_mean(name, self.hyper)}"
                )
        settings = {**self.hyper, **typed(self.name, given, self.hyper)}
        if self.check:
            self.check(**taken(self.check, settings))
        return settings


PRUNERS: Registry[Pruner] = Registry("pruner")


def scorer(
    name: str | Function | None = None,
    *,
    allocation: str = "uniform",
    pattern: str | Pattern = "unstructured",
    check: Function | None = None,
) -> Any:
    """Register a function of one layer's weight as a pruner; the function itself is returned unchanged.

    Args:
        name: how users call the pruner; the function's name if left out.
        allocation: how many weights each layer drops: ``global`` ranks the scores of all layers together,
            ``uniform`` gives every layer the same sparsity, ``multimodal`` is MULTIFLOW's distribution.
        pattern: which weights may go together: ``unstructured``, ``per-row`` or ``N:M``.
        check: ``f(<hyper-parameters it looks at>)``, which raises where one is out of range; called before anything is
            computed.
    """
    return _register("scorer", name, allocation, pattern, check)


def fitter(
    name: str | Function | None = None,
    *,
    allocation: str = "uniform",
    pattern: str | Pattern = "unstructured",
    check: Function | None = None,
) -> Any:
    """Register a function that chooses mask and new weights of one layer as a pruner; arguments as of `scorer`.

    Budgets are there before any score is, so the allocation cannot be ``global``.
    """
    return _register("fitter", name, allocation, pattern, check)


def solver(name: str | Function | None = None, *, steps: int = 1, check: Function | None = None) -> Any:
    """Register a function that chooses masks and new weights of all layers together as a pruner.

    Args:
        name: how users call the pruner; the function's name if left out.
        steps: how often it is repeated along the schedule.
        check: as of `scorer`.
    """
    return _register("solver", name, "global", "unstructured", check, {**STEPWISE, "steps": steps})


def learner(
    name: str | Function | None = None,
    *,
    allocation: str = "uniform",
    pattern: str | Pattern = "unstructured",
    check: Function | None = None,
) -> Any:
    """Register a function that learns scores by running the model as a pruner; arguments as of `scorer`."""
    return _register("learner", name, allocation, pattern, check)


def _register(
    kind: Kind,
    name: str | Function | None,
    allocation: str,
    pattern: str | Pattern,
    check: Function | None,
    schedule: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    if callable(name):
        return _register(kind, None, allocation, pattern, check, schedule)(name)

    def register(function: Function) -> Function:
        called = name or function.__name__
        check_positional(called, kind, function)
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        own = {p.name: p.default for p in keywords if p.default is not p.empty}
        record = Pruner(
            name=called,
            kind=kind,
            function=function,
            summary=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "),
            needs=tuple(p.name for p in keywords if p.default is p.empty),
            hyper=MappingProxyType({**own, **schedule}),
            allocation=allocation,
            pattern=parse_pattern(pattern),
            check=check,
        )
        PRUNERS.add(called, record, replace=_redefined(called, function))
        return function

    return register


def variant(name: str, of: str, summary: str, **changes: Any) -> Pruner:
    """Register a pruner that differs from another in its record alone: allocation, pattern or hyper-parameters."""
    hyper = {**PRUNERS[of].hyper, **changes.pop("hyper", {})}
    record = replace(PRUNERS[of], name=name, summary=summary, hyper=MappingProxyType(hyper), **changes)
    PRUNERS.add(name, record)
    return record


def find_pruner(method: str | Function | Pruner) -> Pruner:
    """Look a pruner up by its name, or by the function that was registered."""
    if isinstance(method, Pruner):
        return method
    if callable(method):
        for record in PRUNERS.values():
            if record.function is method:
                return record
        name = getattr(method, "__name__", type(method).__name__)
        raise MultiflowError(f"function '{name}' is not a pruner; decorate it with @multiflow.scorer")
    return PRUNERS[method]


def _redefined(name: str, function: Function) -> bool:
    """Whether the same function is defined once more, as when a notebook cell runs again."""
    if name not in PRUNERS:
        return False
    old = PRUNERS[name].function
    return (old.__module__, old.__qualname__) == (function.__module__, function.__qualname__)
