"""The pipeline: from a model, a method and data to masks."""

from multiflow.pruning.job import SPARSITIES, check_sparsities
from multiflow.pruning.run import calibrate, prune
from multiflow.pruning.stable import check_until_stable

__all__ = ["SPARSITIES", "calibrate", "check_sparsities", "check_until_stable", "prune"]
