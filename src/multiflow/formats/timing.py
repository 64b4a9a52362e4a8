"""Timing on a machine that others use as well: everything in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """How long something took, in seconds.

    Args:
        seconds: of each turn.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / 2 / self.median if self.median else 0.0


def in_turns(
    functions: Mapping[str, Callable[[], object]],
    turns: int,
    flush: int = 0,
    most: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions in turns after one call of each that does not count.

    Args:
        functions: by name.
        turns: how often each is timed; 1 or more.
        flush: bytes that are read and written before each call, as the rest of a model would between two uses of a
            layer: what lay in the caches is gone then.
        most: seconds after which no further turn is begun.
        clock: what tells the time.
    """
    room = torch.zeros(flush // 4)
    for function in functions.values():
        function()
    found: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + most
    for turn in range(turns):
        if turn and time.perf_counter() > end:
            break
        for name, function in functions.items():
            room.add_(1.0)
            begun = clock()
            function()
            found[name].append(clock() - begun)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}
