"""Calibration: running the model on data and summing up what its layers see."""

from multiflow.calibration.checkpoint import Checkpoint
from multiflow.calibration.collect import Progress, collect, iterate, length, to_device
from multiflow.calibration.curve import Doubling, is_stable
from multiflow.calibration.cycle import Cycle
from multiflow.calibration.gradients import (
    check_precision,
    check_rows_fit,
    gradient_rows,
    keep_up,
    loss_of,
    mean_gradient,
)
from multiflow.calibration.memory import announce, check_fits, free_memory
from multiflow.calibration.restore import buffers_restored, differentiable, put_buffers, weights_replaced
from multiflow.calibration.stats import STATISTICS, Statistic, Stats
from multiflow.calibration.sums import MOMENT, NORM, sums_size
from multiflow.calibration.turns import turns

__all__ = [
    "MOMENT",
    "NORM",
    "STATISTICS",
    "Checkpoint",
    "Cycle",
    "Doubling",
    "Progress",
    "Statistic",
    "Stats",
    "announce",
    "buffers_restored",
    "check_fits",
    "check_precision",
    "check_rows_fit",
    "collect",
    "differentiable",
    "free_memory",
    "gradient_rows",
    "is_stable",
    "iterate",
    "keep_up",
    "length",
    "loss_of",
    "mean_gradient",
    "put_buffers",
    "sums_size",
    "to_device",
    "turns",
    "weights_replaced",
]
