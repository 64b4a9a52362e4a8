"""Handwritten digits, and a small ViT that tells them apart, from random weights to a folder for ``from_pretrained``.

The digits are 1,797 real images of 8 x 8 grey values that come with scikit-learn, without a download. A fixed fifth of
them is the test split, whatever is trained: no seed moves an image from one split to the other.

It is the unimodal experiment at a size that trains in minutes: transformers' own ViT, cross-entropy with smoothed
labels on images that are turned, scaled and moved a little, a new way in every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from multiflow.base.artifacts import write_facts
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.progress import Report
from multiflow.base.runs import run_folder, whole_folder
from multiflow.base.strict import flags
from multiflow.calibration import evaluating
from multiflow.data import VIT_MEAN, VIT_STD, to_pixels
from multiflow.data.sampling import seed_at
from multiflow.tasks.task import Batch
from multiflow.training.loop import Trained, train
from multiflow.training.settings import TrainSettings
from multiflow.worlds.folder import fact_table, trained_on, write_folder

SPLITS = ("train", "test")
CLASSES = 10
IMAGE_SIZE = 16
TEST_IMAGES = 360
SPLIT_SEED = 0


@cache
def digits(split: str) -> tuple[UInt8[np.ndarray, "images 8 8"], Int[np.ndarray, " images"]]:
    """Return the images of a split and which digit each shows.

    Args:
        split: ``train`` (1,437 images) or ``test`` (360).

    Raises:
        MultiflowError: there is no such split, or scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MultiflowError(
            "the handwritten digits come with scikit-learn, which is not installed; run: pip install scikit-learn"
        ) from error
    values, labels = load_digits(return_X_y=True)  # values 0 to 16
    images = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))  # its stream never changes
    chosen = order[:TEST_IMAGES] if split == "test" else order[TEST_IMAGES:]
    return images[chosen], labels[chosen].astype(np.int64)


def digit_batches(
    split: str = "train", *, batch_size: int = 32, limit: int | None = None, image_size: int = IMAGE_SIZE
) -> list[dict[str, Tensor]]:
    """Return a split as batches ``{"pixel_values": (B, 3, size, size), "labels": (B,)}``, always in the same order.

    Args:
        split: ``train`` or ``test``.
        batch_size: images a batch; the last one may be smaller.
        limit: batches at most; None = all.
        image_size: side that the images are scaled up to, in pixels.

    >>> [len(batch["labels"]) for batch in digit_batches("test", batch_size=100)]
    [100, 100, 100, 60]
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise MultiflowError(f"batch_size {batch_size} and limit {limit} were given; expected at least 1")
    images, labels = digits(split)
    stop = len(images) if limit is None else min(len(images), limit * batch_size)
    return [
        {
            "pixel_values": torch.from_numpy(to_pixels(images[i : i + batch_size], image_size, VIT_MEAN, VIT_STD)),
            "labels": torch.from_numpy(labels[i : i + batch_size]),
        }
        for i in range(0, stop, batch_size)
    ]


def write_digits(folder: str | Path) -> Path:
    """Write the images as they are, 8 x 8 pixels, to ``folder/SPLIT/DIGIT/NUMBER.png``; return the folder.

    Raises:
        MultiflowError: the folder cannot be written or is not empty, or scikit-learn is not installed.

    >>> write_digits("digits")  # doctest: +SKIP
    PosixPath('digits')
    """
    parts = {split: digits(split) for split in SPLITS}
    with whole_folder(folder) as place:
        for split, (images, labels) in parts.items():
            for label in range(CLASSES):
                (place / split / str(label)).mkdir(parents=True)
            for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                Image.fromarray(image).save(place / split / str(label) / f"{number:04}.png")
    return Path(folder)


if TYPE_CHECKING:
    from transformers import ViTForImageClassification

FREE_TO_CHANGE = ("checkpoint_every",)
KEEP = ("vit/step-*", "model")  # what makes a run that failed worth keeping
INITIALIZER_RANGE = 0.05
LABEL_SMOOTHING = 0.1
TURN, SCALE, SHIFT = math.radians(10), 0.1, 0.12  # at most; the shift as a share of the side


@dataclass(frozen=True)
class DigitsTraining:
    """Model and schedule of a training run on the digits."""

    image_size: int = IMAGE_SIZE  # side in pixels that the images are scaled up to
    patch_size: int = 4  # side of a patch in pixels
    width: int = 48  # width of the model
    layers: int = 4  # its layers
    heads: int = 3  # attention heads
    mlp: int = 192  # hidden width of the MLPs
    steps: int = 3000  # training steps
    batch_size: int = 64  # images a step
    lr: float = 2e-3  # highest learning rate
    weight_decay: float = 0.05  # of matrices
    device: str = "cpu"  # cpu, cuda or cuda:N
    seed: int = 0  # of weights, order and augmentation; the split is always the same
    checkpoint_every: int = 500  # steps between checkpoints

    def __post_init__(self) -> None:
        if self.width % max(self.heads, 1):
            raise MultiflowError(
                f"width {self.width} and heads {self.heads} were given; expected a multiple of the heads"
            )
        if self.image_size % max(self.patch_size, 1):
            raise MultiflowError(
                f"image_size {self.image_size} and patch_size {self.patch_size} were given; "
                "expected a multiple of the patch size"
            )


def digits_model(settings: DigitsTraining) -> ViTForImageClassification:
    """Build the classifier with random weights that depend on the seed alone."""
    from transformers import ViTConfig, ViTForImageClassification

    names = [str(digit) for digit in range(CLASSES)]
    config = ViTConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.mlp,
        initializer_range=INITIALIZER_RANGE,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        return ViTForImageClassification(config)


def train_digits(
    settings: DigitsTraining, out_dir: Path, *, resume: bool = False, progress: Report | None = None
) -> dict[str, float]:
    """Train the classifier and write it, ready to load, to ``out_dir/model``.

    Args:
        settings: see `DigitsTraining`.
        out_dir: holds ``settings.json``, the folder ``vit`` with checkpoints and metrics, and the model.
        resume: go on where an interrupted run of the same settings stopped.
        progress: called with a `Progress` after every step.

    Returns:
        ``accuracy`` of the stored weights on the test split, in percent.

    Raises:
        MultiflowError: the folder holds another run, scikit-learn is not installed, or training diverged.
    """
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    out_dir = Path(out_dir)
    (data,) = digit_batches("train", batch_size=len(digits("train")[1]), image_size=settings.image_size)
    model = digits_model(settings)
    claimed = run_folder(out_dir, settings, resume=resume, free=FREE_TO_CHANGE, keep=KEEP, allow=["images"])
    with claimed:
        plan = TrainSettings(
            settings.steps,
            settings.lr,
            weight_decay=settings.weight_decay,
            warmup=0.05,
            precision="fp32",
            seed=settings.seed,
            checkpoint_every=settings.checkpoint_every,
        )

        def batch(position: int) -> Batch:
            return augmented(data, settings.batch_size, seed_at(settings.seed, position))

        nn.Module.to(model, settings.device)
        run = train(model, batch, _loss, plan, out_dir / "vit", resume=resume, progress=progress)

        def evaluate(place: Path) -> dict[str, float]:
            stored = ViTForImageClassification.from_pretrained(str(place))
            return {"accuracy": digit_accuracy(stored, digit_batches("test", image_size=settings.image_size))}

        def card(figures: Mapping[str, float], size: str) -> str:
            return CARD.format(facts=fact_table({**_facts(settings, run), "weights": size}), **_counts(), **figures)

        side = {"height": settings.image_size, "width": settings.image_size}
        processor = ViTImageProcessorPil(
            size=side, resample=3, image_mean=VIT_MEAN, image_std=VIT_STD, do_convert_rgb=True
        )
        figures = write_folder(model, processor, out_dir / "model", evaluate, card)
        write_facts(out_dir / "figures.json", figures)
    return figures


def _loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    logits = model(pixel_values=batch["pixel_values"]).logits
    right = (logits.argmax(1) == batch["labels"]).float().mean()
    return F.cross_entropy(logits, batch["labels"], label_smoothing=LABEL_SMOOTHING), {"accuracy": right}


def augmented(data: Mapping[str, Tensor], count: int, seed: int) -> dict[str, Tensor]:
    """Draw so many of the images, each turned, scaled and moved a little; a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(data["labels"]), (count,), generator=generator)
    turn, across, down, right, below = torch.rand(5, count, generator=generator) * 2 - 1
    angle, width, height = turn * TURN, 1 + SCALE * across, 1 + SCALE * down
    shift = 2 * SHIFT  # the grid runs from -1 to 1
    rows = [width * angle.cos(), -angle.sin(), shift * right, angle.sin(), height * angle.cos(), shift * below]
    images: Float[Tensor, "count 3 side side"] = data["pixel_values"][chosen]
    grid = F.affine_grid(torch.stack(rows, 1).unflatten(1, (2, 3)), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return {"pixel_values": moved, "labels": data["labels"][chosen]}


@torch.no_grad()
def digit_accuracy(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Return the share of images, in percent, whose most likely class is their label.

    Args:
        model: an image classifier; it is set to evaluation mode meanwhile.
        batches: such as those of `digit_batches`.
    """
    right = total = 0
    with evaluating(model):
        for batch in batches:
            logits = model(pixel_values=batch["pixel_values"].to(model.device, model.dtype)).logits
            right += int((logits.argmax(1).cpu() == batch["labels"]).sum())
            total += len(logits)
    return 100 * right / total


def _counts() -> dict[str, int]:
    return {split: len(digits(split)[1]) for split in SPLITS}


def _facts(s: DigitsTraining, run: Trained) -> dict[str, object]:
    return {
        "architecture": f"`ViTForImageClassification`, {s.image_size} px in patches of {s.patch_size}, "
        f"width {s.width}, {s.layers} layers",
        "training": f"{run.steps:,} steps of {s.batch_size} images, turned, scaled and moved a little",
        "optimizer": f"AdamW, learning rate {s.lr:g}, weight decay {s.weight_decay:g}, cosine",
        "seed": s.seed,
        "time": trained_on(run.seconds, s.device),
        "command": f"`multiflow digits OUT_DIR{flags(s)}`",
    }


CARD = """---
license: apache-2.0
library_name: transformers
tags: [image-classification, vit, digits]
---
# ViT, trained on handwritten digits

A small ViT trained from random weights on scikit-learn's handwritten digits (`sklearn.datasets.load_digits`, from
"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI, CC BY 4.0): {train:,} images to train,
{test} to test. It exists to be pruned.

```python
import multiflow as mf
model = mf.load_model("vit-digits")
```

| | |
|---|---|
{facts}

Accuracy of the stored float16 weights on the test split: {accuracy:.1f} %.
"""
