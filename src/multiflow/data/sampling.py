"""What is drawn at random, as a function of (seed, position): order of items, captions, regions, hidden tokens.

Nothing runs on between batches, so any batch can be made alone, and a resumed run repeats itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np

from multiflow.base.errors import MultiflowError


class Stream(IntEnum):
    """What the random numbers are for: each use has numbers of its own."""

    ORDER = 1
    CAPTION = 2
    REGION = 3
    MLM = 4
    REGION_MLM = 5
    REGION_ORDER = 6
    REGION_CAPTION = 7
    AUGMENT = 8
    REGION_AUGMENT = 9


def random_at(seed: int, stream: Stream, position: int) -> np.random.Generator:
    """Return a fresh generator that depends on its three arguments alone.

    >>> random_at(0, Stream.MLM, 7).random() == random_at(0, Stream.MLM, 7).random()
    True
    """
    if seed < 0 or position < 0:
        raise MultiflowError(f"seed {seed} and position {position} were given; expected integers of at least 0")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(stream), position))))


def seed_at(seed: int, position: int) -> int:
    """Mix a seed and a position into one seed; neighbours have nothing in common."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1)[0])


@lru_cache(maxsize=4)
def item_order(size: int, seed: int, epoch: int, stream: Stream, shuffle: bool) -> np.ndarray:
    return random_at(seed, stream, epoch).permutation(size) if shuffle else np.arange(size)


@dataclass(frozen=True, eq=False)
class RegionPlan:
    """Region texts in line, cut into batches of equal size; an image at a cut gives texts to both batches."""

    counts: np.ndarray  # texts of each item (items,)
    most: int  # texts taken of one item
    batch_size: int  # texts in a batch
    seed: int  # seed of the run
    shuffle: bool  # whether items and texts come in random order

    @property
    def batches(self) -> int:
        """Batches in an epoch, the last perhaps smaller."""
        return math.ceil(np.minimum(self.counts, self.most).sum() / self.batch_size)

    def slots(self, epoch: int, number: int) -> list[tuple[int, range]]:
        """Return the items of a batch, each with the places of its texts in the item's own order (see `texts`)."""
        order, ends = _line(self, epoch)
        low, high = number * self.batch_size, min((number + 1) * self.batch_size, int(ends[-1]))
        chosen = []
        for place in range(np.searchsorted(ends, low, "right"), np.searchsorted(ends, high - 1, "right") + 1):
            begin = int(ends[place - 1]) if place else 0
            chosen.append((int(order[place]), range(max(low, begin) - begin, min(high, int(ends[place])) - begin)))
        return chosen

    def texts(self, item: int, epoch: int, first: int) -> np.ndarray:
        """Return the numbers of an item's texts in the order of their use; the first `first` keep their place."""
        count = int(self.counts[item])
        if not self.shuffle:
            return np.arange(count)
        rng = random_at(self.seed, Stream.REGION, epoch * len(self.counts) + item)
        return np.concatenate([np.arange(first), first + rng.permutation(count - first)])


@lru_cache(maxsize=4)
def _line(plan: RegionPlan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    order = item_order(len(plan.counts), plan.seed, epoch, Stream.REGION_ORDER, plan.shuffle)
    return order, np.cumsum(np.minimum(plan.counts[order], plan.most))
