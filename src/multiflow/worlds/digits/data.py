"""Handwritten digits: 1,797 real images of 8 x 8 grey values that come with scikit-learn, without a download.

A fixed fifth of them is the test split, whatever is trained: no seed moves an image from one split to the other.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.runs import whole_folder
from multiflow.data import VIT_MEAN, VIT_STD, to_pixels

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
