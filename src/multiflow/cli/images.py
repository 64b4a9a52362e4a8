"""Batches of images alone, for models without a text tower: a folder of images, a folder a class, or pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiflow.data import CLIP_MEAN, CLIP_STD, BrokenItem, Dataset, Mixed, Pair, Skip, SkipReport, open_data, to_pixels
from multiflow.data.files import image_files, load_image
from multiflow.data.images import UNREADABLE, resize
from multiflow.data.plan import item_order
from multiflow.data.seeds import Stream
from multiflow.errors import MultiflowError


@dataclass(frozen=True)
class ImageBatches:
    """Batches ``{"pixel_values": (B, 3, H, H)}``, with ``labels`` (B,) where the images lie in a folder a class.

    Args:
        data: images; the caption of a labelled one is its class.
        image_size: height and width in pixels.
        batch_size: images a batch; the last one may be smaller.
        limit: batches at most.
        seed: of the order.
        classes: class -> label; empty = no labels.
        mean: channel means for values in [0, 1].
        std: channel standard deviations.
    """

    data: Dataset[Any]
    image_size: int
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    _skips: dict[Skip, None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        batches = -(-len(self.data) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        order = item_order(len(self.data), self.seed, 0, Stream.ORDER, shuffle=True)
        any_good = False
        for number in range(len(self)):
            if batch := self._make(order[number * self.batch_size :][: self.batch_size].tolist()):
                any_good = True
                yield batch
        if not any_good:
            raise MultiflowError(f"none of the {self.source} can be read: {self.skipped}; check the files")

    @property
    def source(self) -> str:
        """What images these are, in words."""
        return f"{len(self.data)} images from {self.data.source} ({self.data.layout})"

    @property
    def skipped(self) -> SkipReport:
        """Which images could not be read so far."""
        return SkipReport(min(len(self.data), len(self) * self.batch_size), tuple(self._skips))

    def _make(self, chosen: list[int]) -> dict[str, torch.Tensor]:
        """Make a batch of the images that can be read; an empty one if none can."""
        images, labels = [], []
        for index in chosen:
            try:
                item = self.data[index]
                images.append(_resized(item, self.image_size))
            except BrokenItem as error:
                self._skips[error.skip] = None
                continue
            if self.classes:
                labels.append(self.classes[item.captions[0]])
        if not images:
            return {}
        batch = {"pixel_values": torch.from_numpy(to_pixels(images, self.image_size, self.mean, self.std))}
        return {**batch, "labels": torch.tensor(labels)} if labels else batch


def open_images(source: str, images: str | None = None) -> tuple[Dataset[Any], tuple[str, ...]]:
    """Open images, and the names of their classes if they lie in a folder a class.

    Args:
        source: a folder of images, a folder of such folders (one a class), or any source of pairs or regions.
        images: folder of the images of a source of pairs.
    """
    try:
        data = open_data(source, images=images)
    except MultiflowError:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise
        here = [(folder / name, "") for name in image_files(folder)]
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        found = here or [(path / name, path.name) for path in inner for name in image_files(path)]
        if not found:
            raise
        layout = "image folder" if here else "image folder with a folder a class"
        read = partial(_read, tuple(found))
        classes = tuple(dict.fromkeys(name for _, name in found if name))
        return Dataset("pairs", layout, source, len(found), read), classes
    return data.pairs if isinstance(data, Mixed) else data, ()


def label_classes(classes: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    """Give each class its label: the model's if it knows all the names, else their order."""
    if all(name in known for name in classes):
        return {name: known[name] for name in classes}
    return {name: number for number, name in enumerate(classes)}


def _read(found: tuple[tuple[Path, str], ...], index: int) -> Pair:
    path, name = found[index]
    key = f"{name}/{path.name}".lstrip("/")
    return Pair(load_image(str(path), key), (name,), key)


def _resized(item: Any, size: int) -> np.ndarray:
    try:
        return resize(item.image, size)
    except UNREADABLE as error:
        raise BrokenItem(item.key, str(error)) from error
