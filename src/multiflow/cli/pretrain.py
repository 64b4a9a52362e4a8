"""``multiflow pretrain``: a small X-VLM on Shapes, from random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from multiflow.cli.console import show, table
from multiflow.cli.loading import find_device, quiet_transformers
from multiflow.tasks import pretrain as task
from multiflow.tasks.progress import console_progress


@dataclass(frozen=True)
class PretrainSettings:
    """Where to train, and how.

    Args:
        out_dir: folder for checkpoints, metrics and the model
        resume: go on with an unfinished run in the folder
    """

    out_dir: Positional[str]
    resume: bool = False
    training: OmitArgPrefixes[task.PretrainSettings] = field(default_factory=task.PretrainSettings)


def pretrain(settings: PretrainSettings) -> None:
    """Train, and print what the stored model can do."""
    find_device(settings.training.device)
    out = Path(settings.out_dir)
    with quiet_transformers(), console_progress(Console(stderr=True)) as progress:
        figures = task.pretrain(settings.training, out, resume=settings.resume, progress=progress)
    rows = [(name, f"{value:.1f}") for name, value in figures.items()]
    show(table(f"{out / 'model'} on held-out scenes, in percent", ["figure", "value"], rows))
