"""Calibration: running the model on data and summing up what its layers see."""

from multiflow.calibration.checkpoint import Checkpoint
from multiflow.calibration.collect import Progress, collect, length, to_device
from multiflow.calibration.cycle import Cycle
from multiflow.calibration.gradients import check_loss, check_rows_fit, gradient_rows, mean_gradient
from multiflow.calibration.restore import buffers_restored, differentiable, weights_replaced
from multiflow.calibration.stats import STATISTICS, Statistic, Stats

__all__ = [
    "STATISTICS",
    "Checkpoint",
    "Cycle",
    "Progress",
    "Statistic",
    "Stats",
    "buffers_restored",
    "check_loss",
    "check_rows_fit",
    "collect",
    "differentiable",
    "gradient_rows",
    "length",
    "mean_gradient",
    "to_device",
    "weights_replaced",
]
