"""How long an update method will take and what it will hold, said before it starts.

Each method counts its work on a layer in a few kinds (`multiflow.methods.costs`); how fast this machine does each kind
is measured for a fraction of a second, on all threads at once, as the layers will be worked on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from multiflow.base.parallel import in_parallel
from multiflow.base.types import Layer
from multiflow.methods import LayerCost
from multiflow.pruning.plan import PruningPlan

SIZE = 512  # of the matrices that are timed
TRIES = 3


@dataclass(frozen=True)
class Rates:
    """What all threads together do in a second: operations of the kinds of `LayerCost`, and bytes."""

    products: float
    solves: float
    small: float
    moved: float

    def seconds(self, cost: LayerCost) -> float:
        """Return how long that much work takes.

        >>> Rates(10.0, 5.0, 1.0, 2.0).seconds(LayerCost(products=20, solves=5, small=3, moved=4))
        8.0
        """
        return (
            cost.products / self.products
            + cost.solves / self.solves
            + cost.small / self.small
            + cost.moved / self.moved
        )


@cache
def measure_rates(threads: int) -> Rates:
    """Time the kinds of work on as many threads as layers are worked on, once in a process: a fraction of a second."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(SIZE, SIZE, generator=generator)
    square = torch.randn(2 * SIZE, 2 * SIZE, generator=generator)
    matrix = square @ square.T + 2 * SIZE * torch.eye(2 * SIZE)
    slim = torch.randn(64, 96, 192, generator=generator)
    many = slim @ slim.mT
    long = torch.rand(1 << 19, generator=generator)

    def move() -> None:
        torch.where(long > 0.5, long * 2.0, 0.0)

    kinds: dict[str, tuple[float, Callable[[], object]]] = {
        "products": (2.0 * SIZE**3, lambda: wide @ wide),
        "solves": (float((2 * SIZE) ** 3), lambda: torch.cholesky_inverse(torch.linalg.cholesky(matrix))),
        "small": (2.0 * 64 * 96**3, lambda: torch.cholesky_inverse(torch.linalg.cholesky(many))),
        "moved": (4.0 * 6 * len(long), move),
    }
    return Rates(**{name: _rate(work, run, threads) for name, (work, run) in kinds.items()})


def _rate(work: float, run: Callable[[], object], threads: int) -> float:
    """Work done in a second by all threads together, in the best of a few tries."""
    repeats = 2

    def some(_: int) -> None:
        for _ in range(repeats):
            run()

    run()
    taken = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        list(in_parallel(some, range(threads), most=threads, share=True))
        taken.append(time.perf_counter() - begun)
    return threads * repeats * work / min(taken)


@dataclass(frozen=True)
class Estimate:
    """What an update method will take, besides running the model."""

    seconds: float | None  # for masks and weights of all sparsities, on this machine; None if nobody has counted it
    memory: int  # bytes beside the model: statistics, new weights and work
    threads: int  # that layers are worked on by
    layers: int
    sparsities: int

    def __str__(self) -> str:
        time_said = "an unknown time" if self.seconds is None else f"about {duration(self.seconds)}"
        times = f"{self.layers} layers" + (f" at {self.sparsities} sparsities" if self.sparsities > 1 else "")
        threads = f"{self.threads} threads" if self.threads > 1 else "one thread"
        return f"{time_said} for {times} on {threads}, and {self.memory / 1e9:.2f} GB beside the model"


def duration(seconds: float) -> str:
    """Say seconds in the unit that fits.

    >>> duration(0.4), duration(75), duration(500), duration(9000)
    ('1 s', '75 s', '8 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(plan: PruningPlan, kept: Mapping[float, Callable[[Layer], float]] | None = None) -> LayerCost | None:
    """Count the work of a fitter on all layers and sparsities; None if it has not been counted.

    Args:
        plan: of a fitter.
        kept: sparsity -> share of a layer that stays; the sparsity's own in every layer if left out.
    """
    total = LayerCost()
    for sparsity in plan.sparsities:
        for layer in plan.layout.layers:
            share = kept[sparsity](layer) if kept else 1 - sparsity
            rows, columns = layer.shape
            cost = plan.pruner.cost_of(rows, columns, share, plan.request.own_hyper)
            if cost is None:
                return None
            total += cost
    return total
