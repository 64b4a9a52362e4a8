"""Pruners and budgets: how a pruner and an allocation are declared, and one file an equation.

A pruner or an allocation is found because its file lies here. No models, no data, no masks: what a function needs it
asks for by keyword.
"""

from multiflow.methods.costs import LayerCost
from multiflow.methods.declare import (
    PRUNER_KINDS,
    PRUNERS,
    STEPWISE,
    Pruner,
    find_pruner,
    fitter,
    learner,
    scorer,
    solver,
    variant,
)

__all__ = [
    "PRUNERS",
    "PRUNER_KINDS",
    "STEPWISE",
    "LayerCost",
    "Pruner",
    "find_pruner",
    "fitter",
    "learner",
    "scorer",
    "solver",
    "variant",
]
