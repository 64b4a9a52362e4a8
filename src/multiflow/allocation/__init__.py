"""Allocation: how many weights each layer drops."""

from multiflow.allocation import global_, layerwise, multimodal
from multiflow.allocation.base import ALLOCATIONS, Allocation, check_budget, find_allocation
from multiflow.allocation.fit import check_pattern, fit_budget, pattern_budget
from multiflow.allocation.schedule import SCHEDULES, sparsities_of

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
