"""The pipeline: from a model, a method and data to masks."""

from multiflow.pipeline.job import SPARSITIES, check_sparsities
from multiflow.pipeline.run import calibrate, prune
from multiflow.pipeline.stable import check_until_stable

__all__ = ["SPARSITIES", "calibrate", "check_sparsities", "check_until_stable", "prune"]
