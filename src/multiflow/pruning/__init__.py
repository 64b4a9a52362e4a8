"""Pruning: from a model, a method and data to masks; checks in `plan`, one runner for each kind of pruner.

What is measured, scored and masked lives in the packages below; families, tasks and the command line may not be known.
"""

from multiflow.pruning.plan import SPARSITIES
from multiflow.pruning.run import calibrate, prune

__all__ = ["SPARSITIES", "calibrate", "prune"]
