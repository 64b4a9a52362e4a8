"""The pruners: one file a method, registered by name when imported, in the order in which lists show them."""

# isort: off
from multiflow.methods import random
from multiflow.methods import magnitude
from multiflow.methods import l2
from multiflow.methods import lamp
from multiflow.methods import snip
from multiflow.methods import chita
from multiflow.methods import tamt
from multiflow.methods import wanda
from multiflow.methods import ria
from multiflow.methods import multiflow
from multiflow.methods import refit
from multiflow.methods import lobs
from multiflow.methods.declare import (
    PROVIDED,
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
# isort: on

__all__ = [
    "PROVIDED",
    "PRUNERS",
    "STEPWISE",
    "Pruner",
    "chita",
    "find_pruner",
    "fitter",
    "l2",
    "lamp",
    "learner",
    "lobs",
    "magnitude",
    "multiflow",
    "random",
    "refit",
    "ria",
    "scorer",
    "snip",
    "solver",
    "tamt",
    "variant",
    "wanda",
]
