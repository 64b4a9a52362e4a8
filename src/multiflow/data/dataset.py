"""What a data set is: a length and items by number, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from multiflow.base.errors import MultiflowError, counted

Box: TypeAlias = "tuple[float, float, float, float]"
"""(x, y, width, height) in pixels of the image as given, the origin at its upper left corner."""

ImageLike: TypeAlias = "Image.Image | np.ndarray"


@dataclass(frozen=True, slots=True)
class Pair:
    """An image with its captions; Pillow decodes the image when its pixels are first needed.

    ``prompts`` are what was asked to get each of the captions, as in a conversation; none where nothing was.
    """

    image: ImageLike
    captions: tuple[str, ...]
    key: str
    prompts: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Clip:
    """Recorded speech with what is said in it."""

    sound: Any  # `multiflow.data.audio.Sound`
    text: str
    key: str


class Known(NamedTuple):
    """What is known of an item without opening its image: its texts (none of regions), and the file if it is one."""

    path: str | None
    texts: tuple[str, ...]


def nothing_known(index: int) -> None:
    """Know nothing of an item that has not been read."""


Item = TypeVar("Item")
Kind: TypeAlias = Literal["pairs", "regions", "questions", "clips"]


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
        return len(self.skips)

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the first five."""
        return tuple(skip.key for skip in self.skips[:5])

    def __str__(self) -> str:
        listed = ", ".join(f"{skip.key} ({skip.reason})" for skip in self.skips[:5])
        more = f" and {self.count - 5} more" if self.count > 5 else ""
        return f"{self.count} of {counted(self.seen, 'item')} skipped{': ' * bool(listed)}{listed}{more}"


@dataclass(frozen=True)
class Dataset(Generic[Item]):
    """A data set: ``len(data)``, ``data[i]``, iteration."""

    kind: Kind  # ``pairs``, ``regions``, ``questions`` or ``clips`` (of speech): the type of the items
    layout: str  # which layout it was read from, in words
    source: str  # the file or folder
    size: int  # number of items
    read: Callable[[int], Item]  # gives item i, or raises `BrokenItem`
    texts: np.ndarray | None = None  # for regions, how many texts each item has (items,)
    # gives what is known of item i before it is read, or None where that is nothing
    known: Callable[[int], Known | None] = nothing_known
    skipped: tuple[Skip, ...] = ()  # parts of the source that could not be indexed
    classes: tuple[str, ...] = ()  # of labelled images, whose caption is their class

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        if not -self.size <= index < self.size:
            raise IndexError(f"item {index} of a data set of {self.size}")
        return self.read(index % self.size)

    def __iter__(self) -> Iterator[Item]:
        return map(self.read, range(self.size))

    def __str__(self) -> str:
        return f"{self.size} {self.kind} from {self.source}" + f" ({self.layout})" * (self.source not in self.layout)

    def __repr__(self) -> str:
        return f"Dataset({self})"


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


AnyData: TypeAlias = "Dataset[Pair] | Dataset[RegionItem] | Dataset[Question] | Dataset[Clip] | Mixed"


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


def join(sources: Sequence[AnyData]) -> AnyData:
    """Join data sets: items of one kind follow each other, pairs and regions become `Mixed`.

    Errors: MultiflowError if questions or clips are among other kinds, or if there is nothing to join.

    >>> join([open_data("coco"), open_data("cc3m"), open_data("vg")])   # doctest: +SKIP
    Mixed(...)
    """
    parts = [p for data in sources for p in ((data.pairs, data.regions) if isinstance(data, Mixed) else (data,))]
    by_kind: dict[str, list[Dataset[Any]]] = {}
    for part in parts:
        by_kind.setdefault(part.kind, []).append(part)
    if not by_kind or (len(by_kind) > 1 and by_kind.keys() != {"pairs", "regions"}):
        raise MultiflowError(
            f"these data sets cannot be joined: {'; '.join(map(str, sources)) or 'none was given'}; "
            "expected pairs and regions, or questions or clips alone"
        )
    joined = {kind: _one_after_the_other(listed) for kind, listed in by_kind.items()}
    return Mixed(joined["pairs"], joined["regions"]) if len(joined) > 1 else next(iter(joined.values()))


def whole_images(data: AnyData) -> AnyData:
    """Take regions as whole images with the texts of their regions as captions, for models that know no regions.

    Alone they become pairs; in `Mixed` they stay apart, so that every batch holds as many of them as before.
    """
    match data:
        case Mixed():
            return Mixed(data.pairs, _without_boxes(data.regions))
        case Dataset(kind="regions"):
            return _without_boxes(data)
    return data


def as_pairs(data: AnyData) -> AnyData:
    """Take questions as pairs whose captions are the question with each of its answers; leave other data as they are.

    A question that has no answer is its own caption.
    """
    if isinstance(data, Mixed) or data.kind != "questions":
        return data
    layout = f"{data.layout}, questions with their answers"
    return Dataset("pairs", layout, data.source, len(data), partial(_read_asked, data.read), skipped=data.skipped)


def _read_asked(read: Any, index: int) -> Pair:
    item: Question = read(index)
    answers = tuple(dict.fromkeys(item.answers)) or ("",)
    return Pair(item.image, tuple(f"{item.question} {answer}".strip() for answer in answers), item.key)


def _without_boxes(data: Dataset[Any]) -> Dataset[Pair]:
    if data.kind == "pairs":
        return data
    layout = f"{data.layout}, whole images"
    return Dataset("pairs", layout, data.source, len(data), partial(_read_whole, data.read), skipped=data.skipped)


def _read_whole(read: Any, index: int) -> Pair:
    item: RegionItem = read(index)
    return Pair(item.image, tuple(text for region in item.regions for text in region.captions), item.key)


def _one_after_the_other(parts: Sequence[Dataset[Any]]) -> Dataset[Any]:
    if len(parts) == 1:
        return parts[0]
    kind, ends = parts[0].kind, np.cumsum([len(part) for part in parts])
    return Dataset(
        kind,
        " + ".join(dict.fromkeys(part.layout for part in parts)),
        " + ".join(part.source for part in parts),
        int(ends[-1]),
        partial(_read_joined, tuple(part.read for part in parts), ends),
        texts=np.concatenate([part.texts for part in parts if part.texts is not None]) if kind == "regions" else None,
        known=partial(_read_joined, tuple(part.known for part in parts), ends),
        skipped=tuple(skip for part in parts for skip in part.skipped),
    )


def _read_joined(readers: tuple[Any, ...], ends: np.ndarray, index: int) -> Any:
    number = int(np.searchsorted(ends, index, "right"))
    return readers[number](index - (int(ends[number - 1]) if number else 0))
