"""``multiflow pretrain``: a small X-VLM on Shapes, from random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from multiflow.cli.loading import find_device, quiet_transformers
from multiflow.cli.settings import Resume
from multiflow.cli.show_run import print_figures
from multiflow.tasks import pretrain as task
from multiflow.tasks.progress import console_progress


@dataclass(frozen=True)
class PretrainSettings:
    """Where to train, and how.

    Args:
        out_dir: folder for checkpoints, metrics and the model
    """

    out_dir: Positional[str]
    resume: Resume = False
    training: OmitArgPrefixes[task.PretrainSettings] = field(default_factory=task.PretrainSettings)


def pretrain(settings: PretrainSettings) -> None:
    """Train, and print what the stored model can do."""
    find_device(settings.training.device)
    out = Path(settings.out_dir)
    with quiet_transformers(), console_progress(Console(stderr=True)) as progress:
        figures = task.pretrain(settings.training, out, resume=settings.resume, progress=progress)
    print_figures(figures, out)
