"""What a data set is: a length and items by number, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from multiflow.base.errors import MultiflowError

Box: TypeAlias = "tuple[float, float, float, float]"
"""(x, y, width, height) in pixels of the image as given, the origin at its upper left corner."""

ImageLike: TypeAlias = "Image.Image | np.ndarray"


@dataclass(frozen=True, slots=True)
class Pair:
    """An image with its captions; Pillow decodes the image when its pixels are first needed."""

    image: ImageLike
    captions: tuple[str, ...]
    key: str


class Region(NamedTuple):
    """A part of an image and the ways to describe it; no box means the whole image."""

    captions: tuple[str, ...]
    box: Box | None


@dataclass(frozen=True, slots=True)
class RegionItem:
    """An image with described regions; boxes are as annotated, in pixels, not yet clipped to the image."""

    image: ImageLike
    regions: tuple[Region, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image with its answers: ten in VQA v2, none in a test split.

    ``dataset`` is what a prepared list says of where the question is from: ``vqa``, ``vg`` (Visual Genome), or nothing.
    """

    image: ImageLike
    question: str
    answers: tuple[str, ...]
    key: str
    dataset: str = ""


class Known(NamedTuple):
    """What is known of an item without opening its image: the file, and its captions or answers (none of regions)."""

    path: str
    texts: tuple[str, ...]


def nothing_known(index: int) -> None:
    """Know nothing of an item that has not been read."""


Item = TypeVar("Item")
Kind: TypeAlias = Literal["pairs", "regions", "questions"]


class Skip(NamedTuple):
    """One item that could not be read, and why."""

    key: str
    reason: str


class BrokenItem(MultiflowError):
    """An item of a data set cannot be read; `Batches` skips and counts it."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"cannot read '{key}': {reason}; replace the file, or let Batches skip it")
        self.skip = Skip(key, reason)

    def __reduce__(self) -> tuple[type[BrokenItem], Skip]:
        return BrokenItem, self.skip


@dataclass(frozen=True, slots=True)
class SkipReport:
    """How many items were skipped, of how many that were looked at.

    >>> print(SkipReport(100, (Skip("a.jpg", "image file is truncated"),)))
    1 of 100 items skipped: a.jpg (image file is truncated)
    """

    seen: int
    skips: tuple[Skip, ...] = ()

    @property
    def count(self) -> int:
        """Number of skipped items."""
        return len(self.skips)

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the first five."""
        return tuple(skip.key for skip in self.skips[:5])

    def __str__(self) -> str:
        listed = ", ".join(f"{skip.key} ({skip.reason})" for skip in self.skips[:5])
        more = f" and {self.count - 5} more" if self.count > 5 else ""
        return f"{self.count} of {self.seen} items skipped{': ' * bool(listed)}{listed}{more}"


@dataclass(frozen=True)
class Dataset(Generic[Item]):
    """A data set: ``len(data)``, ``data[i]``, iteration.

    Args:
        kind: ``pairs``, ``regions`` or ``questions``: the type of the items.
        layout: which layout it was read from, in words.
        source: the file or folder.
        size: number of items.
        read: gives item i, or raises `BrokenItem`.
        texts: for regions, how many texts each item has (items,).
        known: gives what is known of item i before it is read, or None where its image is no file of its own.
        skipped: parts of the source that could not be indexed.
    """

    kind: Kind
    layout: str
    source: str
    size: int
    read: Callable[[int], Item]
    texts: np.ndarray | None = None
    known: Callable[[int], Known | None] = nothing_known
    skipped: tuple[Skip, ...] = ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        if not -self.size <= index < self.size:
            raise IndexError(f"item {index} of a data set of {self.size}")
        return self.read(index % self.size)

    def __iter__(self) -> Iterator[Item]:
        return map(self.read, range(self.size))

    def __str__(self) -> str:
        return f"{self.size} {self.kind} from {self.source} ({self.layout})"


@dataclass(frozen=True)
class Mixed:
    """General pairs and regions side by side: every batch holds some of both, as in X-VLM's pretraining.

    Where a model knows no regions, `regions` holds whole images with the texts of their regions (`whole_images`).
    """

    pairs: Dataset[Pair]
    regions: Dataset[RegionItem] | Dataset[Pair]

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Parts of either source that could not be indexed."""
        return self.pairs.skipped + self.regions.skipped

    def __len__(self) -> int:
        return len(self.pairs)

    def __str__(self) -> str:
        return f"{self.pairs} + {self.regions}"


AnyData: TypeAlias = "Dataset[Pair] | Dataset[RegionItem] | Dataset[Question] | Mixed"


def from_memory(pairs: Sequence[tuple[ImageLike, str | Sequence[str]]]) -> Dataset[Pair]:
    """Make a data set of images and captions that are already in memory.

    >>> len(from_memory([(np.zeros((8, 8, 3), np.uint8), "a black square")]))
    1
    """
    if not len(pairs):
        raise MultiflowError("an empty list of pairs was given; expected (image, caption) pairs")
    return Dataset("pairs", "in memory", "memory", len(pairs), partial(_read_memory, pairs))


def _read_memory(pairs: Sequence[tuple[ImageLike, str | Sequence[str]]], index: int) -> Pair:
    image, captions = pairs[index]
    return Pair(image, (captions,) if isinstance(captions, str) else tuple(captions), str(index))
