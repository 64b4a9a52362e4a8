"""Batches of images alone, for models without a text tower: a folder of images, labelled ones, or pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from multiflow.base.errors import MultiflowError
from multiflow.data import CLIP_MEAN, CLIP_STD, BrokenItem, Dataset, Mixed, Pair, Skip, SkipReport, open_data, to_pixels
from multiflow.data.assemble import Made
from multiflow.data.augment import augment_image
from multiflow.data.background import make_ahead
from multiflow.data.files import NoSuchSplit, image_files, load_image
from multiflow.data.images import UNREADABLE, decode, resize
from multiflow.data.layouts.labelled import is_labelled, open_labelled
from multiflow.data.plan import item_order
from multiflow.data.seeds import Stream, random_at


@dataclass(frozen=True)
class ImageBatches:
    """Batches ``{"pixel_values": (B, 3, H, H)}``, with ``labels`` (B,) where the images are labelled.

    Args:
        data: images; the caption of a labelled one is its class.
        image_size: height and width in pixels.
        batch_size: images a batch; the last one may be smaller.
        limit: batches at most.
        seed: of the order.
        classes: class -> label; empty = no labels.
        mean: channel means for values in [0, 1].
        std: channel standard deviations.
        augment: None, or ``paper``: crops, flips and RandAugment as in the published calibration.
        workers: processes that read and decode in the background; 0 = none.
    """

    data: Dataset[Any]
    image_size: int
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    augment: str | None = None
    workers: int = 0
    _pass: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        batches = -(-len(self.data) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        any_good = False
        for batch in self.numbered(range(len(self))):
            if batch is not None:
                any_good = True
                yield batch
        if not any_good:
            raise MultiflowError(f"none of the {self.source} can be read: {self.skipped}; check the files")

    def numbered(self, numbers: Iterable[int]) -> Iterator[dict[str, torch.Tensor] | None]:
        """Make the batches with these numbers, counted from 0; None for one whose images are all broken."""
        skips: dict[Skip, None] = {}
        self._pass.update(seen=0, skips=skips)
        for made in make_ahead(self._make, numbers, self.workers):
            self._pass["seen"] += made.seen
            skips.update(dict.fromkeys(made.skips))
            yield made.batch

    @property
    def source(self) -> str:
        """What images these are, in words."""
        return f"{len(self.data)} images from {self.data.source} ({self.data.layout})"

    @property
    def skipped(self) -> SkipReport:
        """What could not be read in the latest pass, as far as it has come."""
        return SkipReport(self._pass.get("seen", 0), tuple(self._pass.get("skips", ())))

    def _make(self, number: int) -> Made:
        """Make a batch of the images that can be read."""
        order = item_order(len(self.data), self.seed, 0, Stream.ORDER, shuffle=True)
        chosen = order[number * self.batch_size :][: self.batch_size].tolist()
        chances: Sequence[Generator | None] = [None] * len(chosen)
        if self.augment:
            chances = random_at(self.seed, Stream.AUGMENT, number).spawn(len(chosen))
        images, labels, skips = [], [], []
        for index, chance in zip(chosen, chances, strict=True):
            try:
                item = self.data[index]
                images.append(_pixels(item, self.image_size, chance))
            except BrokenItem as error:
                skips.append(error.skip)
                continue
            if self.classes:
                labels.append(self.classes[item.captions[0]])
        if not images:
            return Made(None, len(chosen), tuple(skips))
        batch = {"pixel_values": torch.from_numpy(to_pixels(images, self.image_size, self.mean, self.std))}
        return Made({**batch, "labels": torch.tensor(labels)} if labels else batch, len(chosen), tuple(skips))


def open_images(
    source: str, images: str | None = None, split: str | None = None
) -> tuple[Dataset[Any], tuple[str, ...]]:
    """Open images, and the names of their classes if they are labelled.

    Args:
        source: a folder of images, labelled images in any layout of `open_labelled`, or a source of pairs or regions.
        images: folder of the images of a source of pairs.
        split: of a source that has splits; None = train.
    """
    try:
        data = open_data(source, images=images, split=split)
    except NoSuchSplit:
        raise
    except MultiflowError:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise
        here = tuple((folder / name, "") for name in image_files(folder))
        if not here and not is_labelled(folder):
            raise
        if not here:
            labelled = open_labelled(source, split)
            layout = f"images of {len(labelled.choices)} classes"
            return Dataset("pairs", layout, source, len(labelled), labelled.__getitem__), labelled.choices
        if split is not None:
            raise NoSuchSplit(
                f"split '{split}' was given, but '{source}' is a folder of images; leave it out"
            ) from None
        return Dataset("pairs", "image folder", source, len(here), partial(_read, here)), ()
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


def _pixels(item: Any, size: int, chance: Generator | None) -> np.ndarray:
    """Return an image as a uint8 array (size, size, 3), augmented where there is something to draw from."""
    try:
        if chance is None:
            return resize(item.image, size)
        return augment_image(decode(item.image), " ".join(getattr(item, "captions", ())), size, chance)
    except UNREADABLE as error:
        raise BrokenItem(item.key, str(error)) from error
