"""The pipeline: from a model, a method and data to masks."""

from multiflow.pipeline.job import SPARSITIES, check_sparsities
from multiflow.pipeline.run import calibrate, prune

__all__ = ["SPARSITIES", "calibrate", "check_sparsities", "prune"]
