"""How far a mean, or the difference of two pruners, may be luck: a paired bootstrap over test items and seeds.

A resample draws test items with replacement, the same for every pruner and every seed (the test set is one, whichever
the seed), then seeds with replacement, the same for both pruners of a difference. 95 % intervals are percentiles of
the resampled values. One seed: items alone are drawn, and the interval knows nothing of the luck of a training.

Drawing items anew for each seed, as if each had a test set of its own, would be too sure of itself: simulated
differences of zero fell into 84 to 98 % of such intervals (three to five seeds, 200 items, some items harder for one
pruner than for the other, some luck of the training), and into 91 to 100 % of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TypeAlias

import numpy as np

from multiflow.bench.records import Cell

RESAMPLES = 2000
MOST_ITEMS = 2000
"""More items than that are resampled in as many blocks of neighbours."""

Each: TypeAlias = Mapping[int, np.ndarray]
"""Seed -> figure of each test item."""


@dataclass(frozen=True)
class Difference:
    """A mean difference over the seeds that both sides have, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]

    @property
    def noise(self) -> bool:
        """Whether the interval includes zero: the difference may be luck."""
        return self.low <= 0 <= self.high

    def __neg__(self) -> Difference:
        return Difference(-self.value, -self.high, -self.low, self.seeds)


def each_of(cells: Iterable[Cell]) -> Each:
    """Return the figures of the test items, seed by seed, of cells that have them."""
    return {cell.seed: np.asarray(cell.each, float) for cell in cells if len(cell.each)}


def best_of(means: Mapping[str, float], found: Mapping[tuple[str, str], Difference]) -> str:
    """Return the pruner that is ahead of most others on the seeds they share; where that ties, the highest mean.

    With the same seeds everywhere it is the highest mean. A mean over fewer seeds does not win by luck of the seed.
    """

    def ahead(name: str) -> tuple[int, float]:
        return sum(found[name, b].value > 0 for b in means if (name, b) in found), means[name]

    return max(means, key=ahead)


def interval(each: Each) -> tuple[float, float]:
    """Return the 95 % interval of the mean over seeds and items."""
    seeds = tuple(sorted(each))
    return ends(over_seeds(item_means(each), seeds))


def differences(samples: Mapping[str, Each]) -> dict[tuple[str, str], Difference]:
    """Return (a, b) -> a minus b for every two names in their order that have a seed and its test items in common."""
    pairs: dict[tuple[int, ...], list[tuple[str, str]]] = defaultdict(list)
    for a, b in combinations(samples, 2):
        if seeds := common_seeds(samples[a], samples[b]):
            pairs[seeds].append((a, b))
    found = {}
    drawn = {name: item_means(each) for name, each in samples.items()}
    for seeds, these in pairs.items():
        names = {name for pair in these for name in pair}
        draws = {name: over_seeds(drawn[name], seeds) for name in names}
        means = {name: float(np.mean([samples[name][seed].mean() for seed in seeds])) for name in names}
        for a, b in these:
            found[a, b] = Difference(round(means[a] - means[b], 9), *ends(draws[a] - draws[b]), seeds)
    return {pair: found[pair] for pair in combinations(samples, 2) if pair in found}


def common_seeds(a: Each, b: Each) -> tuple[int, ...]:
    """Return the seeds that both have, with as many test items."""
    return tuple(seed for seed in sorted(a.keys() & b.keys()) if len(a[seed]) == len(b[seed]))


def item_means(each: Each) -> Each:
    """Return seed -> resampled means over items, shape (RESAMPLES,); test sets of one size share the draws."""
    return {seed: _item_means(figures) for seed, figures in each.items()}


def over_seeds(drawn: Each, seeds: tuple[int, ...]) -> np.ndarray:
    """Return the resampled means over seeds of `item_means`; names with the same seeds share the draws."""
    means = np.stack([drawn[seed] for seed in seeds])
    chosen = np.random.default_rng(len(seeds)).integers(0, len(seeds), means.shape)
    return np.take_along_axis(means, chosen, 0).mean(0)


def _item_means(each: np.ndarray) -> np.ndarray:
    starts = np.linspace(0, len(each), min(len(each), MOST_ITEMS), endpoint=False).astype(int)
    counts = np.diff(starts, append=len(each))
    drawn = _draws(len(starts))
    return (drawn @ np.add.reduceat(each, starts)) / (drawn @ counts)


@lru_cache(maxsize=4)
def _draws(items: int) -> np.ndarray:
    """How often each item is drawn in each resample, shape (RESAMPLES, items)."""
    drawn = np.random.default_rng(items).integers(0, items, (RESAMPLES, items))
    rows = np.arange(RESAMPLES)[:, None] * items
    return np.bincount((rows + drawn).ravel(), minlength=RESAMPLES * items).reshape(RESAMPLES, items).astype(float)


def ends(draws: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of resampled values."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return round(float(low), 9), round(float(high), 9)
