"""How sparsity grows over the steps of an iterative pruner. Every schedule ends at the target, not beyond it."""

from __future__ import annotations

from collections.abc import Callable

from multiflow.errors import MultiflowError
from multiflow.registry import Registry

Schedule = Callable[[float, float], float]
"""``f(target, share of the steps that are done) -> sparsity``."""

SCHEDULES: Registry[Schedule] = Registry("schedule")
SCHEDULES.add("exp", lambda target, done: 1 - (1 - target) ** done)
SCHEDULES.add("linear", lambda target, done: target * done)


def sparsities_of(schedule: str, target: float, steps: int) -> list[float]:
    """Return the sparsity after each step; the last one is the target itself.

    >>> sparsities_of("linear", 0.75, 3)
    [0.25, 0.5, 0.75]
    """
    if steps < 1:
        raise MultiflowError(f"steps={steps} is not a number of steps; expected 1 or more")
    grow = SCHEDULES[schedule]
    return [*(grow(target, step / steps) for step in range(1, steps)), target]
