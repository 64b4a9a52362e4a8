"""Calibration: running the model on data and summing up what its layers see."""

from multiflow.calibration.checkpoint import Checkpoint
from multiflow.calibration.collect import Progress, collect, to_device
from multiflow.calibration.gradients import mean_gradient
from multiflow.calibration.stats import STATISTICS, Statistic, Stats

__all__ = ["STATISTICS", "Checkpoint", "Progress", "Statistic", "Stats", "collect", "mean_gradient", "to_device"]
