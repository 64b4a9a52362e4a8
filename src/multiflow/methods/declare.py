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

A scorer or solver that is declared ``stepwise`` is repeated along a schedule, each time measured on the model as it is
pruned by then; `STEPWISE` are the hyper-parameters of the schedule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

from torch import Tensor

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.registry import Registry
from multiflow.base.strict import WORDS, typed
from multiflow.base.types import Pattern, parse_pattern
from multiflow.methods.costs import LayerCost

Function = Callable[..., Any]
KindName = Literal["scorer", "fitter", "solver", "learner"]

STEPWISE: Mapping[str, Any] = MappingProxyType({"steps": 60, "batches_per_step": 50, "schedule": "exp"})
"""Hyper-parameters of the schedule, which the pipeline reads: steps, batches measured in each, growth of sparsity."""


class Choose(Protocol):
    """What a fitter is given to choose with: the budget of its layer, under a pattern."""

    @property
    def layer(self) -> str:
        """Name of the layer, for errors."""

    @property
    def count(self) -> int:
        """How many weights go in the end."""

    @property
    def pattern(self) -> Pattern:
        """Which weights may go together."""

    def __call__(self, scores: Tensor, done: float = 1.0) -> Tensor:
        """Drop the lowest of ``(out, in)`` scores, as many as the budget says once ``done`` is 1; True = kept."""

    def within(self, scores: Tensor, count: int) -> Tensor:
        """Drop ``count`` of the scores of some columns, whole groups of an N:M pattern, by the same pattern."""


SCOPES = {"layer": "uniform", "global": "global"}
"""What a hyper-parameter ``threshold`` means as an allocation."""


@dataclass(frozen=True)
class PrunerKind:
    """What the functions of one kind of pruner take and give; how they are run stands in `multiflow.pruning`.

    Args:
        positional: what they are given by position.
        keywords: keywords without a default that are no statistics. ``generator``: a ``torch.Generator`` seeded by the
            run's seed and the layer's name; ``gradient_rows`` and ``batch_samples``: the gradient of each batch, and
            the mean number of samples in one; ``sparsity``, ``seed``, ``checkpoint`` (or None), ``progress`` (or None).
        statistics: whether other keywords may be statistics.
        measures: what the model is run for beside statistics, in words.
        changes_weights: whether they return new weights.
        gradients: whether they look at gradients, whatever their keywords.
        budgets_first: whether a layer's budget must be known before it has scores.
        shares_out: whether they share the sparsity out over the layers themselves.
        never_settles: why nobody can watch its masks settle while data come in; None where one can.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    statistics: bool = False
    measures: tuple[str, ...] = ()
    changes_weights: bool = False
    gradients: bool = False
    budgets_first: bool = False
    shares_out: bool = False
    never_settles: str | None = None


PRUNER_KINDS: Mapping[str, PrunerKind] = MappingProxyType(
    {
        "scorer": PrunerKind(("weight",), ("generator",), statistics=True),
        "fitter": PrunerKind(
            ("weight", "choose"),
            statistics=True,
            changes_weights=True,
            budgets_first=True,
            never_settles="changes what it keeps",
        ),
        "solver": PrunerKind(
            ("weights", "count", "select"),
            ("gradient_rows", "batch_samples"),
            measures=("gradient of each batch",),
            changes_weights=True,
            gradients=True,
            shares_out=True,
            never_settles="prunes in steps",
        ),
        "learner": PrunerKind(
            ("model", "weights", "loss", "select"),
            ("sparsity", "seed", "checkpoint", "progress"),
            measures=("loss",),
            gradients=True,
            never_settles="learns its masks",
        ),
    }
)
"""The kinds of pruners, in the order in which lists show them."""


@dataclass(frozen=True)
class Pruner:
    """A pruner as a record: its function, and what the pipeline must bring to it.

    Args:
        name: how users call it.
        kind: ``scorer``, ``fitter``, ``solver`` or ``learner``; it says what ``function`` is.
        function: a scorer is ``f(weight, *, <statistics>, <hyper-parameters>) -> scores``, of the weight's shape, of
            which low ones go. A fitter is ``f(weight, choose, *, ...) -> (mask, new weight)``, with ``choose`` a
            `Choose`. A solver is ``f(weights, count, select, *, ...) -> (masks, new weights)``: ``count``
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
        stepwise: whether it runs along a schedule, measuring anew in every step.
        cost: of a fitter, ``f(rows, columns, kept, <hyper-parameters it looks at>) -> LayerCost`` of one layer of
            which a share ``kept`` stays; None where nobody has counted it.
    """

    name: str
    kind: KindName
    function: Function
    summary: str
    needs: tuple[str, ...]
    hyper: Mapping[str, Any]
    allocation: str
    pattern: Pattern
    check: Function | None = None
    stepwise: bool = False
    cost: Callable[..., LayerCost] | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics it needs from calibration data."""
        return tuple(name for name in self.needs if name not in PRUNER_KINDS[self.kind].keywords)

    @property
    def own_hyper(self) -> tuple[str, ...]:
        """The hyper-parameters that its function takes, without those of the schedule."""
        return tuple(name for name in self.hyper if not (self.stepwise and name in STEPWISE))

    @property
    def needs_data(self) -> bool:
        """Whether it needs calibration data at all."""
        return bool(self.looks_at) or self.stepwise

    @property
    def looks_at(self) -> tuple[str, ...]:
        """What it takes from calibration data, in words: statistics, or what its kind runs the model for."""
        return (*self.statistics, *PRUNER_KINDS[self.kind].measures)

    @property
    def takes_gradients(self) -> bool:
        """Whether the model is run backwards for it."""
        return PRUNER_KINDS[self.kind].gradients or "gradient" in self.statistics

    @property
    def shares_pass(self) -> bool:
        """Whether statistics measured once, on the dense model, serve it at every sparsity."""
        return PRUNER_KINDS[self.kind].statistics and not self.stepwise

    @property
    def never_settles(self) -> str | None:
        """Why nobody can watch its masks settle while data come in; None where one can."""
        if why := PRUNER_KINDS[self.kind].never_settles or ("prunes in steps" if self.stepwise else None):
            return why
        if len(self.statistics) > 1:
            return f"needs a pass of its own for each of {', '.join(self.statistics)}"
        return None if self.needs_data else "needs no data"

    @property
    def changes_weights(self) -> bool:
        """Whether it changes the weights that it keeps."""
        return PRUNER_KINDS[self.kind].changes_weights

    def scope(self, hyper: Mapping[str, Any]) -> str:
        """Return the allocation it uses with these hyper-parameters, unless told otherwise."""
        if "threshold" not in hyper:
            return self.allocation
        if hyper["threshold"] not in SCOPES:
            raise unknown("threshold", hyper["threshold"], SCOPES)
        return SCOPES[hyper["threshold"]]

    def call(self, *args: Any, **keywords: Any) -> Any:
        """Call the function with those keywords that it takes."""
        return self.function(*args, **_accepted(self.function, keywords))

    def cost_of(self, rows: int, columns: int, kept: float, hyper: Mapping[str, Any]) -> LayerCost | None:
        """Count the work on one layer ``(rows, columns)`` of which a share ``kept`` stays; None if it is not known."""
        return None if self.cost is None else self.cost(rows, columns, kept, **_accepted(self.cost, hyper))

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Merge hyper-parameters over the defaults; an unknown one, or one out of range, is an error that names it."""
        for name in given:
            if name not in self.hyper:
                known = ", ".join(self.hyper) or "none"
                raise MultiflowError(
                    f"pruner '{self.name}' has no hyper-parameter '{name}'; it has: {known}"
                    f"{did_you_mean(name, self.hyper)}"
                )
        typed = {name: typed_as(self.hyper[name], name, value, self.name) for name, value in given.items()}
        settings = {**self.hyper, **typed}
        if self.check:
            self.check(**_accepted(self.check, settings))
        return settings


def list_order(name: str, pruner: Pruner) -> tuple[Any, ...]:
    """Sort by kind, then by what it costs: without data, forward passes, backward passes, in steps; then by name."""
    cost = (pruner.takes_gradients, bool(pruner.statistics), pruner.stepwise)
    return (list(PRUNER_KINDS).index(pruner.kind), *cost, name)


PRUNERS: Registry[Pruner] = Registry("pruner", "multiflow.methods", order=list_order)


def scorer(
    name: str | Function | None = None,
    *,
    allocation: str = "uniform",
    pattern: str | Pattern = "unstructured",
    check: Function | None = None,
    stepwise: bool = False,
) -> Any:
    """Register a function of one layer's weight as a pruner; the function itself is returned unchanged.

    Args:
        name: how users call the pruner; the function's name if left out.
        allocation: how many weights each layer drops: ``global`` ranks the scores of all layers together,
            ``uniform`` gives every layer the same sparsity, ``multimodal`` is MULTIFLOW's distribution.
        pattern: which weights may go together: ``unstructured``, ``per-row`` or ``N:M``.
        check: ``f(<hyper-parameters it looks at>)``, which raises where one is out of range; called before anything is
            computed.
        stepwise: whether it is repeated along a schedule; it has the hyper-parameters of `STEPWISE` then.
    """
    return _register("scorer", name, allocation, pattern, check, STEPWISE if stepwise else None)


def fitter(
    name: str | Function | None = None,
    *,
    allocation: str = "uniform",
    pattern: str | Pattern = "unstructured",
    check: Function | None = None,
    cost: Callable[..., LayerCost] | None = None,
) -> Any:
    """Register a function that chooses mask and new weights of one layer as a pruner; arguments as of `scorer`.

    Budgets are there before any score is, so the allocation cannot be ``global``. With ``cost``, which counts the work
    on one layer (see `Pruner`), the time is said before it starts.
    """
    return _register("fitter", name, allocation, pattern, check, cost=cost)


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
    kind: KindName,
    name: str | Function | None,
    allocation: str,
    pattern: str | Pattern,
    check: Function | None,
    schedule: Mapping[str, Any] | None = None,
    cost: Callable[..., LayerCost] | None = None,
) -> Any:
    if callable(name):
        return _register(kind, None, allocation, pattern, check, schedule, cost)(name)

    def register(function: Function) -> Function:
        called = name or function.__name__
        _check_positional(called, kind, function)
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        own = {p.name: p.default for p in keywords if p.default is not p.empty}
        record = Pruner(
            name=called,
            kind=kind,
            function=function,
            summary=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "),
            needs=tuple(p.name for p in keywords if p.default is p.empty),
            hyper=MappingProxyType({**own, **(schedule or {})}),
            allocation=allocation,
            pattern=parse_pattern(pattern),
            check=check,
            stepwise=schedule is not None,
            cost=cost,
        )
        PRUNERS.add(called, record, replace=_redefined(called, function))
        return function

    return register


def variant(name: str, of: str, summary: str, **changes: Any) -> Pruner:
    """Register a pruner that differs from another in its record alone.

    Args:
        name: how users call it.
        of: the pruner that it is a variant of.
        summary: one line for lists.
        **changes: ``allocation``, ``pattern``, ``stepwise=True`` to repeat it along a schedule, ``hyper`` (defaults
            of hyper-parameters, those of `STEPWISE` included where it is repeated).

    Raises:
        MultiflowError: a hyper-parameter that neither the function nor its schedule has.
    """
    base = PRUNERS[of]
    schedule = STEPWISE if changes.get("stepwise", base.stepwise) else {}
    hyper, given = {**base.hyper}, changes.pop("hyper", {})
    hyper |= {key: value for key, value in schedule.items() if key not in hyper} | given
    for unfit in given.keys() - schedule.keys() - base.hyper.keys():
        steps = "; those of a schedule need stepwise=True" if unfit in STEPWISE else ""
        raise MultiflowError(f"pruner '{name}' is given '{unfit}', which '{of}' does not have{steps}")
    record = replace(base, name=name, summary=summary, hyper=MappingProxyType(hyper), **changes)
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
        raise MultiflowError(f"function '{function_name(method)}' is not a pruner; decorate it with @multiflow.scorer")
    return PRUNERS[method]


def _redefined(name: str, function: Function) -> bool:
    """Whether the same function is defined once more, as when a notebook cell runs again."""
    if name not in PRUNERS:
        return False
    old = PRUNERS[name].function
    return (old.__module__, old.__qualname__) == (function.__module__, function.__qualname__)


def function_name(function: Function) -> str:
    """Return what a function is called, or the class of an object that can be called."""
    return getattr(function, "__name__", type(function).__name__)


def _check_positional(name: str, kind: str, function: Callable[..., Any]) -> None:
    given, signature = PRUNER_KINDS[kind].positional, inspect.signature(function)
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in signature.parameters.values() if p.kind in by_position and p.default is p.empty]
    try:
        signature.bind_partial(*given)
        fits = len(needed) <= len(given)
    except TypeError:
        fits = False
    if not fits:
        raise MultiflowError(
            f"{kind} '{name}' takes {', '.join(needed) or 'nothing'} by position, but is given {', '.join(given)}; "
            f"statistics and hyper-parameters come after a star: def {name}({', '.join(given)}, *, ...)"
        )


def _accepted(function: Function, keywords: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in keywords.items() if name in parameters}


def typed_as(default: Any, name: str, value: Any, pruner: str) -> Any:
    """Return the value of a hyper-parameter as the type of its default (`typed`); a default of another type takes all.

    Raises:
        MultiflowError: a value of another type than the default.
    """
    if (kind := type(default)) not in WORDS:
        return value
    try:
        return typed(kind, value)
    except TypeError:
        raise MultiflowError(
            f"{{{name}={value!r}}} of pruner '{pruner}' is a {type(value).__name__}; expected {WORDS[kind]}, such as "
            f"its default {default!r}",
            field=name,
        ) from None
