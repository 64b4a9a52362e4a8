"""Allocation: how many weights each layer drops."""

from multiflow.methods.budgets import global_, layerwise, multimodal
from multiflow.methods.budgets.base import ALLOCATIONS, Allocation, check_budget, find_allocation
from multiflow.methods.budgets.fit import check_pattern, fit_budget, pattern_budget
from multiflow.methods.budgets.schedule import SCHEDULES, sparsities_of

__all__ = [
    "ALLOCATIONS",
    "SCHEDULES",
    "Allocation",
    "check_budget",
    "check_pattern",
    "find_allocation",
    "fit_budget",
    "global_",
    "layerwise",
    "multimodal",
    "pattern_budget",
    "sparsities_of",
]
