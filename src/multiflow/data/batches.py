"""Batches of a data set: an iterable that can be iterated again and gives the same batches every time.

Which items a batch holds, which of their captions and regions, and which tokens are hidden are functions of
(seed, epoch, number of the batch): any batch can be made alone, in any process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from multiflow.base.errors import MultiflowError
from multiflow.data.assemble import Batch, Inputs, Made, assemble_pairs, assemble_regions
from multiflow.data.background import make_ahead
from multiflow.data.dataset import AnyData, Dataset, ImageLike, Mixed, Pair, RegionItem, SkipReport, from_memory
from multiflow.data.plan import RegionPlan, item_order
from multiflow.data.seeds import Stream


@dataclass(frozen=True)
class Batches:
    """Batches of pairs, of regions, or of both (``batch["region"]``), in an order that the seed decides.

    Args:
        data: what `open_data` returns, or a list of (image, caption) in memory.
        inputs: what the model takes.
        batch_size: pairs a batch; the last one of an epoch may be smaller.
        region_batch_size: texts in a region batch; None = `batch_size`. Beside pairs, regions start over when spent.
        max_regions: texts taken of one image, its own caption included.
        limit: batches at most; None = the whole epoch.
        start: number of the first batch, to go on in the middle of an epoch.
        seed: seed of the run.
        epoch: number of the epoch; another epoch has another order, other captions and other hidden tokens.
        shuffle: False keeps the order of the data.
        workers: processes that read and decode in the background; 0 = none.

    Broken images are skipped, their batch is smaller by that much, and `skipped` tells which. If no image can be read
    at all, iterating raises MultiflowError. Data of regions alone give the region batches themselves.

    >>> batches = Batches(open_data("cc3m"), Inputs(tokenizer, 224), batch_size=32, limit=100)   # doctest: +SKIP
    >>> for batch in batches: model(**batch)                                                     # doctest: +SKIP
    """

    data: AnyData | Sequence[tuple[ImageLike, str | Sequence[str]]]
    inputs: Inputs
    batch_size: int = 32
    region_batch_size: int | None = None
    max_regions: int = 5
    limit: int | None = None
    start: int = 0
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    workers: int = 0
    _pass: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        least = dict.fromkeys(("batch_size", "region_batch_size", "max_regions", "limit"), 1)
        for name, minimum in (least | dict.fromkeys(("start", "seed", "epoch", "workers"), 0)).items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise MultiflowError(f"{name} {value} was given; expected at least {minimum}")
        if not isinstance(self.data, Dataset | Mixed):
            object.__setattr__(self, "data", from_memory(self.data))
        if isinstance(self.data, Dataset) and self.data.kind == "questions":
            raise MultiflowError(f"{self.data} were given; batches are made of image-caption pairs or regions")
        if self._regions is not None and self._regions.kind == "regions" and self.inputs.patch_size is None:
            raise MultiflowError(
                f"{self._regions} were given without a patch size; set patch_size in Inputs, "
                "or take them as whole images with whole_images(data)"
            )

    def __len__(self) -> int:
        return max(0, min(self._in_epoch, self.limit or self._in_epoch) - self.start)

    def __iter__(self) -> Iterator[Batch]:
        any_good = False
        for batch in self.numbered(range(len(self))):
            if batch is not None:
                any_good = True
                yield batch
        if len(self) and not any_good:
            raise MultiflowError(f"no image of {self.data} can be read: {self.skipped}; check the files")

    def numbered(self, numbers: Iterable[int]) -> Iterator[Batch | None]:
        """Make the batches with these numbers, counted from `start`; None for one whose images are all broken."""
        skips = dict.fromkeys(cast("AnyData", self.data).skipped)
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

    def batch(self, number: int) -> Batch | None:
        """Make one batch of the epoch by its number, counted from 0; None if all its images are broken."""
        if not 0 <= number < self._in_epoch:
            raise MultiflowError(f"batch {number} was asked for; the epoch has batches 0 to {self._in_epoch - 1}")
        made = self._make(number)
        if made.error is not None:
            raise MultiflowError(made.error)
        return made.batch

    def _make(self, number: int) -> Made:
        """Make one batch; an error comes back as a value, so that it crosses process borders in one piece."""
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
        """Batches in a whole epoch."""
        return self._plan.batches if self._pairs is None else math.ceil(len(self._pairs) / self.batch_size)
