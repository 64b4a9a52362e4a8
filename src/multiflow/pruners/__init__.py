"""The pruners: one file a method, registered by name when imported, in the order in which lists show them."""

# isort: off
from multiflow.pruners import random
from multiflow.pruners import magnitude
from multiflow.pruners import l2
from multiflow.pruners import lamp
from multiflow.pruners import snip
from multiflow.pruners import chita
from multiflow.pruners import tamt
from multiflow.pruners import wanda
from multiflow.pruners import ria
from multiflow.pruners import multiflow
from multiflow.pruners import refit
from multiflow.pruners import lobs
from multiflow.pruners.base import (
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
