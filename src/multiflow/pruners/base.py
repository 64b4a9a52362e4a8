"""How a pruner is declared: one small function whose signature says what it needs.

A *scorer* is a pure function of one layer's weight. Keyword arguments without a default are the statistics it needs,
keyword arguments with a default are its hyper-parameters::

    @scorer(allocation="uniform")
    def wanda(weight, *, input_norm):
        return weight.abs() * input_norm
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from multiflow.errors import MultiflowError, did_you_mean
from multiflow.registry import Registry
from multiflow.types import Pattern, parse_pattern

Scorer = Callable[..., Any]

PROVIDED = ("generator",)
"""Keywords that the pipeline itself provides: a ``torch.Generator`` seeded by the run's seed and the layer's name."""


@dataclass(frozen=True)
class Pruner:
    """A pruner as a record: its function, and what the pipeline must bring to it.

    Args:
        name: how users call it.
        function: ``f(weight, *, <statistics>, <hyper-parameters>) -> scores``, of the weight's shape; low scores go.
        summary: one line for lists.
        needs: names of the statistics it needs.
        hyper: its hyper-parameters with their defaults.
        allocation: name of the allocation it uses unless told otherwise.
        pattern: the pattern it uses unless told otherwise.
    """

    name: str
    function: Scorer
    summary: str
    needs: tuple[str, ...]
    hyper: Mapping[str, Any]
    allocation: str
    pattern: Pattern

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics it needs from calibration data; empty for a data-free pruner."""
        return tuple(name for name in self.needs if name not in PROVIDED)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Merge hyper-parameters over the defaults; an unknown one is an error that names it."""
        for name in given:
            if name not in self.hyper:
                known = ", ".join(self.hyper) or "none"
                raise MultiflowError(
                    f"pruner '{self.name}' has no hyper-parameter '{name}'; it has: {known}"
                    f"{did_you_mean(name, self.hyper)}"
                )
        return {**self.hyper, **given}


PRUNERS: Registry[Pruner] = Registry("pruner")


def scorer(
    name: str | Scorer | None = None, *, allocation: str = "uniform", pattern: str | Pattern = "unstructured"
) -> Any:
    """Register a function of one layer's weight as a pruner; the function itself is returned unchanged.

    Args:
        name: how users call the pruner; the function's name if left out.
        allocation: how many weights each layer drops: ``global`` ranks the scores of all layers together,
            ``uniform`` gives every layer the same sparsity, ``multimodal`` is MULTIFLOW's distribution.
        pattern: which weights may go together: ``unstructured``, ``per-row`` or ``N:M``.
    """
    if callable(name):
        return scorer()(name)

    def register(function: Scorer) -> Scorer:
        called = name or function.__name__
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        record = Pruner(
            name=called,
            function=function,
            summary=(inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " "),
            needs=tuple(p.name for p in keywords if p.default is p.empty),
            hyper=MappingProxyType({p.name: p.default for p in keywords if p.default is not p.empty}),
            allocation=allocation,
            pattern=parse_pattern(pattern),
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


def find_pruner(method: str | Scorer | Pruner) -> Pruner:
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


def _redefined(name: str, function: Scorer) -> bool:
    """Whether the same function is defined once more, as when a notebook cell runs again."""
    if name not in PRUNERS:
        return False
    old = PRUNERS[name].function
    return (old.__module__, old.__qualname__) == (function.__module__, function.__qualname__)
