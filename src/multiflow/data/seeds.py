"""Randomness as a function of (seed, position): nothing runs on between batches, so a resumed run repeats itself."""

from __future__ import annotations

from enum import IntEnum

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
