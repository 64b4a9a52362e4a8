"""Recovery: what a sparse model keeps is trained until it does again what the dense one did, on calibration data alone.

The dense model is the teacher: no labels, no task. How a model is run and what its outputs are called comes from its
adapter; no family of models, no task and no training settings may be known here.
"""

from multiflow.recovery.run import WAYS, recover

__all__ = ["WAYS", "recover"]
