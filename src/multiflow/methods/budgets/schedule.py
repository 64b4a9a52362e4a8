"""Schedules: the sparsity after each step of a method that prunes in steps.

With target s, steps t = 1 .. T:

    exp       1 - (1 - s)^(t / T)      each step drops the same share of what is left
    linear    s t / T                  each step drops the same number

Both end at the target.
"""

from __future__ import annotations

from collections.abc import Callable

from multiflow.base.errors import MultiflowError, unknown

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "exp": lambda target, done: 1 - (1 - target) ** done,
    "linear": lambda target, done: target * done,
}


def sparsities_of(schedule: str, target: float, steps: int) -> list[float]:
    """Return the sparsity after each step; the last one is the target itself.

    >>> sparsities_of("exp", 0.75, 2)
    [0.5, 0.75]
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if steps < 1:
        raise MultiflowError(f"steps {steps} was given; expected at least 1")
    return [SCHEDULES[schedule](target, step / steps) for step in range(1, steps)] + [target]
