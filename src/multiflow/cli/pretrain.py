"""``multiflow pretrain``: a small X-VLM or BLIP on Shapes, from random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from multiflow.base.errors import MultiflowError
from multiflow.base.progress import console_progress
from multiflow.cli.console import print_figures
from multiflow.cli.settings import Resume
from multiflow.families.opening import find_device, quiet_transformers
from multiflow.worlds.shapes import models
from multiflow.worlds.shapes import pretrain as task

MAY_BE_ZERO = ("seed", "region_every")


@dataclass(frozen=True)
class PretrainSettings:
    """Where to train, and how.

    Args:
        out_dir: folder for checkpoints, metrics and the model
    """

    out_dir: Positional[str]
    resume: Resume = False
    training: OmitArgPrefixes[models.Pretraining] = field(default_factory=models.Pretraining)


def pretrain(settings: PretrainSettings) -> None:
    check(settings.training)
    out = Path(settings.out_dir)
    with quiet_transformers(), console_progress(Console(stderr=True)) as progress:
        figures = task.pretrain(settings.training, out, resume=settings.resume, progress=progress)
    print_figures(figures, out)


def check(training: models.Pretraining) -> None:
    """Check all that can be checked before the output folder is touched."""
    find_device(training.device)
    check_values(training, MAY_BE_ZERO)
    models.shapes_model(training, len(models.shapes_tokenizer(training.family)))  # sizes that do not fit are an error


def check_values(training: Any, may_be_zero: Sequence[str] = ("seed",)) -> None:
    """Check that the numbers among the settings of a training are finite and large enough."""
    for entry in fields(training):
        value = getattr(training, entry.name)
        if isinstance(entry.default, float):
            wrong, expected = not 0 <= value < math.inf, "a number of at least 0"
        else:
            least = 0 if entry.name in may_be_zero else 1
            wrong, expected = isinstance(value, int) and value < least, f"at least {least}"
        if wrong:
            raise MultiflowError(f"--{entry.name.replace('_', '-')} {value} was given; expected {expected}")
