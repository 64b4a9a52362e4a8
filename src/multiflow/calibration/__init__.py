"""Calibration: running the model on data and summing up what its layers see.

No pruner and no adapter lives here: callables say how to run a model, what its loss is and which tokens are real.
"""

from multiflow.calibration.batches import Cycle, iterate, length, to_device, turns
from multiflow.calibration.checkpoint import Checkpoint
from multiflow.calibration.gradients import (
    check_precision,
    check_rows_fit,
    gradient_rows,
    keep_up,
    loss_of,
    mean_gradient,
)
from multiflow.calibration.inputs import MOMENT, NORM, collect, sums_size
from multiflow.calibration.memory import announce, announce_text, check_fits, free_memory, give_back_memory, unannounced
from multiflow.calibration.reach import unused_layers
from multiflow.calibration.state import buffers_restored, differentiable, evaluating, put_buffers, weights_replaced
from multiflow.calibration.stats import STATISTICS, Doubling, Statistic, Stats, is_stable, read_stats
from multiflow.calibration.unreached import check_loss_reaches

__all__ = [
    "MOMENT",
    "NORM",
    "STATISTICS",
    "Checkpoint",
    "Cycle",
    "Doubling",
    "Statistic",
    "Stats",
    "announce",
    "announce_text",
    "buffers_restored",
    "check_fits",
    "check_loss_reaches",
    "check_precision",
    "check_rows_fit",
    "collect",
    "differentiable",
    "evaluating",
    "free_memory",
    "give_back_memory",
    "gradient_rows",
    "is_stable",
    "iterate",
    "keep_up",
    "length",
    "loss_of",
    "mean_gradient",
    "put_buffers",
    "read_stats",
    "sums_size",
    "to_device",
    "turns",
    "unannounced",
    "unused_layers",
    "weights_replaced",
]
