"""Batches of a data set: iterables that can be iterated again and give the same batches every time.

Which items a batch holds, which of their captions and regions, and which tokens are hidden are functions of
(seed, epoch, number of the batch): any batch can be made alone, in any process, ahead of its use.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

from multiflow.base.errors import MultiflowError, counted
from multiflow.data.collate import Batch, Inputs, Made, assemble_pairs, assemble_regions, chances, read_pixels
from multiflow.data.dataset import (
    AnyData,
    BrokenItem,
    Dataset,
    ImageLike,
    Mixed,
    Pair,
    RegionItem,
    SkipReport,
    from_memory,
)
from multiflow.data.images import CLIP_MEAN, CLIP_STD, to_pixels
from multiflow.data.sampling import RegionPlan, Stream, item_order

Value = TypeVar("Value")


class Repeatable(ABC):
    """Batches by number: iteration, and the account of what was skipped on the way.

    Broken items are left out, and their batch is smaller by that much. The first whole pass that skipped some warns,
    once, with their number and the first reasons.
    """

    _pass: dict[str, Any]
    start: int
    workers: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def __str__(self) -> str:
        """Say of what these are batches."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self})"

    @abstractmethod
    def _make(self, number: int) -> Made:
        """Make a batch of the epoch; an error comes back as a value, to cross process borders in one piece."""

    @property
    @abstractmethod
    def _known_skips(self) -> Iterable[Any]:
        """What was left out when the data were opened."""

    def __iter__(self) -> Iterator[Batch]:
        any_good = False
        for batch in self.numbered(range(len(self))):
            if batch is not None:
                any_good = True
                yield batch
        if len(self) and not any_good:
            raise MultiflowError(f"nothing of {self} can be read: {self.skipped}; check the files")
        if self.skipped.count and not self._pass.get("warned"):
            self._pass["warned"] = True
            warnings.warn(str(self.skipped), stacklevel=2)

    def numbered(self, numbers: Iterable[int]) -> Iterator[Batch | None]:
        """Make the batches with these numbers, counted from the first; None for one whose images are all broken."""
        skips = dict.fromkeys(self._known_skips)
        self._pass.update(seen=len(skips), skips=skips)
        of_epoch = (self.start + number for number in numbers)
        for made in make_ahead(self._make, of_epoch, self.workers if len(self) else 0):
            self._pass["seen"] += made.seen
            skips.update(dict.fromkeys(made.skips))
            if made.error is not None:
                raise MultiflowError(made.error)
            yield made.batch

    @property
    def skipped(self) -> SkipReport:
        """What was skipped in the latest pass, as far as it has come."""
        return SkipReport(self._pass.get("seen", 0), tuple(self._pass.get("skips", ())))


@dataclass(frozen=True, repr=False)
class Batches(Repeatable):
    """Batches of pairs, of regions, or of both (``batch["region"]``), in an order that the seed decides.

    Broken images are skipped, their batch is smaller by that much, `skipped` tells which, and a whole pass warns of
    them once. If no image can be read at all, iterating raises MultiflowError. Data of regions alone give the region
    batches themselves.

    >>> batches = Batches(open_data("cc3m"), Inputs(tokenizer, 224), batch_size=32, limit=100)   # doctest: +SKIP
    >>> for batch in batches: model(**batch)                                                     # doctest: +SKIP
    """

    # what `open_data` returns, or a list of (image, caption) in memory
    data: AnyData | Sequence[tuple[ImageLike, str | Sequence[str]]]
    inputs: Inputs  # what the model takes
    batch_size: int = 32  # pairs a batch; the last one of an epoch may be smaller
    # texts in a region batch; None = `batch_size`. Beside pairs, regions start over when spent.
    region_batch_size: int | None = None
    max_regions: int = 5  # texts taken of one image, its own caption included
    limit: int | None = None  # batches at most; None = the whole epoch
    start: int = 0  # number of the first batch, to go on in the middle of an epoch
    seed: int = 0  # seed of the run
    epoch: int = 0  # number of the epoch; another epoch has another order, other captions and other hidden tokens
    shuffle: bool = True  # False keeps the order of the data
    workers: int = 0  # processes that read and decode in the background; 0 = none
    _pass: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        least = dict.fromkeys(("batch_size", "region_batch_size", "max_regions", "limit"), 1)
        for name, minimum in (least | dict.fromkeys(("start", "seed", "epoch", "workers"), 0)).items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise MultiflowError(f"{name} {value} was given; expected at least {minimum}")
        if not isinstance(self.data, Dataset | Mixed):
            object.__setattr__(self, "data", from_memory(self.data))
        if isinstance(self.data, Dataset) and self.data.kind in ("questions", "clips"):
            raise MultiflowError(f"{self.data} were given; batches are made of image-caption pairs or regions")
        if self._regions is not None and self._regions.kind == "regions" and self.inputs.patch_size is None:
            raise MultiflowError(
                f"{self._regions} were given without a patch size; set patch_size in Inputs, "
                "or take them as whole images with whole_images(data)"
            )

    def __len__(self) -> int:
        return max(0, min(self._in_epoch, self.limit or self._in_epoch) - self.start)

    def __str__(self) -> str:
        return str(self.data)

    def batch(self, number: int) -> Batch | None:
        """Make one batch of the epoch by its number, counted from 0; None if all its images are broken."""
        if not 0 <= number < self._in_epoch:
            raise MultiflowError(f"batch {number} was asked for; the epoch has batches 0 to {self._in_epoch - 1}")
        made = self._make(number)
        if made.error is not None:
            raise MultiflowError(made.error)
        return made.batch

    def _make(self, number: int) -> Made:
        position = self.epoch * self._in_epoch + number
        try:
            if self._pairs is None:
                return self._make_regions(position)
            order = item_order(len(self._pairs), self.seed, self.epoch, Stream.ORDER, self.shuffle)
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size].tolist()
            made = assemble_pairs(self._pairs, chosen, self.inputs, self.seed, position)
            if self._regions is None:
                return made
            more = self._make_regions(position)
        except MultiflowError as error:
            return Made(None, 0, error=str(error))
        both = {**made.batch, "region": more.batch} if made.batch and more.batch else made.batch
        return Made(both, made.seen + more.seen, made.skips + more.skips)

    def _make_regions(self, position: int) -> Made:
        """Make the region batch at a position of the run; of whole images where those stand in for regions."""
        regions: Any = self._regions
        if regions.kind == "regions":
            return assemble_regions(regions, self._plan, *divmod(position, self._plan.batches), self.inputs, position)
        size = self.region_batch_size or self.batch_size
        epoch, number = divmod(position, math.ceil(len(regions) / size))
        order = item_order(len(regions), self.seed, epoch, Stream.REGION_ORDER, self.shuffle)
        chosen = order[number * size : (number + 1) * size].tolist()
        return assemble_pairs(regions, chosen, self.inputs, self.seed, position, of_regions=True)

    @property
    def _known_skips(self) -> Iterable[Any]:
        return cast("AnyData", self.data).skipped

    @property
    def _pairs(self) -> Dataset[Pair] | None:
        data: Any = self.data
        return data.pairs if isinstance(data, Mixed) else data if data.kind == "pairs" else None

    @property
    def _regions(self) -> Dataset[RegionItem] | Dataset[Pair] | None:
        data: Any = self.data
        return data.regions if isinstance(data, Mixed) else data if data.kind == "regions" else None

    @cached_property
    def _plan(self) -> RegionPlan:
        regions = self._regions
        assert regions is not None
        assert regions.texts is not None
        size = self.region_batch_size or self.batch_size
        return RegionPlan(regions.texts, self.max_regions, size, self.seed, self.shuffle)

    @property
    def _in_epoch(self) -> int:
        return self._plan.batches if self._pairs is None else math.ceil(len(self._pairs) / self.batch_size)


@dataclass(frozen=True, repr=False)
class ImageBatches(Repeatable):
    """Batches ``{"pixel_values": (B, 3, H, H)}``, with ``labels`` (B,) where the images are labelled.

    Broken images are skipped, as of `Batches`.
    """

    data: Dataset[Any]  # images; the caption of a labelled one is its class
    image_size: int  # height and width in pixels
    batch_size: int = 32  # images a batch; the last one may be smaller
    limit: int | None = None  # batches at most
    seed: int = 0  # of the order
    classes: Mapping[str, int] = field(default_factory=dict)  # class -> label; empty = no labels
    mean: Sequence[float] = CLIP_MEAN  # channel means for values in [0, 1]
    std: Sequence[float] = CLIP_STD  # channel standard deviations
    augment: str | None = None  # None, or ``paper``: crops, flips and RandAugment as in the published calibration
    workers: int = 0  # processes that read and decode in the background; 0 = none
    start: int = field(default=0, init=False)
    _pass: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        batches = -(-len(self.data) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __str__(self) -> str:
        return f"{counted(len(self.data), 'image')} from {self.data.source} ({self.data.layout})"

    @property
    def _known_skips(self) -> Iterable[Any]:
        return self.data.skipped

    def _make(self, number: int) -> Made:
        import torch

        order = item_order(len(self.data), self.seed, 0, Stream.ORDER, shuffle=True)
        chosen = order[number * self.batch_size :][: self.batch_size].tolist()
        images, labels, skips = [], [], []
        randomness = chances(self.augment, self.seed, Stream.AUGMENT, number, len(chosen))
        for index, chance in zip(chosen, randomness, strict=True):
            try:
                item = self.data[index]
                images.append(read_pixels(item, " ".join(getattr(item, "captions", ())), self.image_size, chance))
            except BrokenItem as error:
                skips.append(error.skip)
                continue
            except MultiflowError as error:
                return Made(None, 0, error=str(error))
            if self.classes:
                labels.append(self.classes[item.captions[0]])
        if not images:
            return Made(None, len(chosen), tuple(skips))
        batch = {"pixel_values": torch.from_numpy(to_pixels(images, self.image_size, self.mean, self.std))}
        return Made({**batch, "labels": torch.tensor(labels)} if labels else batch, len(chosen), tuple(skips))


def make_ahead(make: Callable[[int], Value], numbers: Iterable[int], workers: int) -> Iterator[Value]:
    """Yield ``make(number)`` for one number after the other.

    Args:
        make: a function that can be pickled where processes cannot be forked; its errors had better be values.
        numbers: of what is to be made.
        workers: processes that make two ahead each; 0 = this one makes each when it is asked for.

    >>> list(make_ahead(abs, [-2, 3, -4], workers=0))
    [2, 3, 4]
    """
    if not workers:
        yield from map(make, numbers)
        return
    from torch.utils.data import DataLoader

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    source, order = cast("Any", _ByNumber(make)), cast("Any", numbers)
    yield from DataLoader(source, sampler=order, batch_size=None, num_workers=workers, collate_fn=_as_it_is)


@dataclass(frozen=True)
class _ByNumber:
    """What is made, as the DataLoader asks for it."""

    make: Callable[[int], Any]

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def _as_it_is(made: Any) -> Any:
    return made
