"""``multiflow digits``: real images that need no download, and a small ViT trained on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from multiflow.base.progress import console_progress
from multiflow.cli.console import show
from multiflow.cli.pretrain import check_values
from multiflow.cli.settings import Resume
from multiflow.families.opening import find_device, quiet_transformers
from multiflow.worlds.digits import vit as task
from multiflow.worlds.digits.vit import write_digits


@dataclass(frozen=True)
class DigitsSettings:
    """Where to write and to train, and how.

    Args:
        out_dir: folder for the images, checkpoints, metrics and the model
        images_only: write the images and train nothing
    """

    out_dir: Positional[str]
    images_only: bool = False
    resume: Resume = False
    training: OmitArgPrefixes[task.DigitsTraining] = field(default_factory=task.DigitsTraining)


def digits(settings: DigitsSettings) -> None:
    check_values(settings.training)
    find_device(settings.training.device)
    out = Path(settings.out_dir)
    images = out / "images"
    if not (settings.resume and images.is_dir()):
        write_digits(images)
    show(f"images written to {images}, a folder a class")
    if settings.images_only:
        return
    with quiet_transformers(), console_progress(Console(stderr=True)) as progress:
        figures = task.train_digits(settings.training, out, resume=settings.resume, progress=progress)
    show(f"{out / 'model'} gets {figures['accuracy']:.1f} % of the test images right")
