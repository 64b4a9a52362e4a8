"""Budget search: evolution of how many weights each layer drops, judged by the sparse model itself (after EvoPress,
Sieberling et al., ICML 2025, arXiv 2410.14649).

Each layer is at a level, a number of steps of about `STEP` of its weights above or below the sparsity asked for. A
generation makes children of the best assignment so far: some layers go up a level, others down, so that the total stays
exactly what it is; one child in three moves a whole group (vision, text, fusion) against another one, which asks how
much of the sparsity each may take. The fitness is a loss against the dense model: all children are judged on a few
batches, the best of them and their parent on all, and the better one is the next parent.

Differences from the published code: levels are whole numbers of weights, so that layers of different sizes can trade;
moves between groups; the loss is that of recovery (hidden states, in-batch similarities, logits), not that of a
language model alone; and the random numbers are a function of seed and generation, so that a search that is ended goes
on. Several processes share the children out. Where every row of a layer drops equally many, budgets are rounded to
that before they are judged, with the total as near as rows allow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import exchange, rank, world
from multiflow.base.types import Budget, Layer, Layout
from multiflow.methods.budgets import allocation

STEP = 0.02  # of a layer's weights, a level
MOST = 5  # levels above or below the sparsity asked for
FINALISTS = 2  # children that are judged on all batches
TRADES = 3  # moves of a child, at most
GROUPED = 3  # one child in so many moves a group against another

Levels = dict[str, int]


class Fitness(Protocol):
    """Judges budgets, and knows where a search stands."""

    @property
    def seed(self) -> int:
        """Of the random numbers."""

    def __call__(self, budget: Budget, *, whole: bool) -> float:
        """Return the loss of the model pruned to these budgets, on all batches or on the first."""

    def load(self, sparsity: float) -> tuple[int, Levels, float] | None:
        """Return the generations done, the best levels and their loss, of a search that was ended."""

    def save(self, sparsity: float, generation: int, of: int, levels: Levels, loss: float) -> None:
        """Note where the search stands, and tell of it."""


@allocation("search")
def search(
    layout: Layout,
    sparsities: Sequence[float],
    *,
    fitness: Fitness,
    generations: int = 40,
    children: int = 8,
) -> list[Budget]:
    """Search budgets by evolution: levels of layers and groups are traded, judged by distillation loss on a few pairs.

    It starts from the same share in every layer, and keeps the total of it. Needs a pruner that prunes layer by layer
    from statistics, and 64 to 256 pairs of data.
    """
    return [evolve(layout, sparsity, fitness, generations, children) for sparsity in sparsities]


def evolve(layout: Layout, sparsity: float, fitness: Fitness, generations: int, children: int) -> Budget:
    """Return the best budget of a search.

    Raises:
        MultiflowError: the loss is not finite, or the same for all budgets.
    """
    units = sizes_of_levels(layout)
    found = fitness.load(sparsity)
    if found is None:
        parent = dict.fromkeys(layout, 0)
        found = 0, parent, _judged(fitness, layout, sparsity, parent, units, whole=True)
    first, parent, best = found
    for generation in range(first + 1, generations + 1):
        generator = random.Random(fitness.seed * 1_000_003 + generation)
        made = [child for _ in range(children) if (child := mutated(layout, sparsity, parent, units, generator))]
        losses = _shared_out(lambda child: _judged(fitness, layout, sparsity, child, units, whole=False), made)
        if generation == 1 and len(set(losses)) == 1 and len(made) > 1:
            raise MultiflowError(
                f"the loss is {losses[0]:g} whatever the budgets of {len(made)} trials, so that there is nothing to "
                "search by; give data and an Adapter(forward=...) or Adapter(outputs=...) that run the layers, or take "
                "allocation='uniform'"
            )
        ranked = sorted(zip(losses, range(len(made)), strict=True))
        finalists = [made[number] for _, number in ranked[:FINALISTS]]
        wholes = _shared_out(lambda child: _judged(fitness, layout, sparsity, child, units, whole=True), finalists)
        for child, loss in zip(finalists, wholes, strict=True):
            if loss < best:
                parent, best = child, loss
        fitness.save(sparsity, generation, generations, parent, best)
    return budget_of(layout, sparsity, parent, units)


def sizes_of_levels(layout: Layout) -> dict[str, int]:
    """Return how many weights a level of each layer is: multiples of one number, so that layers can trade.

    >>> sizes_of_levels(Layout((Layer("a", (10, 100), "x"), Layer("b", (10, 290), "x"))))
    {'a': 20, 'b': 60}
    """
    unit = max(1, round(STEP * min(layer.size for layer in layout.layers)))
    return {layer.name: unit * max(1, round(STEP * layer.size / unit)) for layer in layout.layers}


def budget_of(layout: Layout, sparsity: float, levels: Mapping[str, int], units: Mapping[str, int]) -> Budget:
    """Return the budget of some levels; its total is that of the same share in every layer."""
    return Budget({x.name: round(sparsity * x.size) + levels[x.name] * units[x.name] for x in layout.layers})


def mutated(
    layout: Layout, sparsity: float, levels: Mapping[str, int], units: Mapping[str, int], generator: random.Random
) -> Levels | None:
    """Return other levels with the same total; None where no trade can be found."""
    groups = [[layer.name for layer in of] for of in layout.groups.values()]
    child = dict(levels)
    if len(groups) > 1 and generator.randrange(GROUPED) == 0:
        up, down = generator.sample(groups, 2)
        some = generator.sample(up, max(1, len(up) // 2))
        _trade(layout, sparsity, child, units, some, down, len(some), generator)
    else:
        names = list(layout)
        _trade(layout, sparsity, child, units, names, names, generator.randint(1, TRADES), generator)
    return child if child != levels else None


def _trade(
    layout: Layout,
    sparsity: float,
    levels: Levels,
    units: Mapping[str, int],
    up: Sequence[str],
    down: Sequence[str],
    most: int,
    generator: random.Random,
) -> None:
    """Let layers go up a level and others down as many weights; what finds no partner is taken back."""
    before = dict(levels)
    raised = [name for name in generator.sample(list(up), len(up)) if _may(layout[name], sparsity, levels, units, 1)]
    raised = raised[:most]
    owed = 0
    for name in raised:
        levels[name] += 1
        owed += units[name]
    for _ in range(MOST):
        for name in generator.sample(list(down), len(down)):
            if owed and name not in raised and units[name] <= owed and _may(layout[name], sparsity, levels, units, -1):
                levels[name] -= 1
                owed -= units[name]
    if owed:
        levels.update(before)


def _may(layer: Layer, sparsity: float, levels: Levels, units: Mapping[str, int], by: int) -> bool:
    level = levels[layer.name] + by
    count = round(sparsity * layer.size) + level * units[layer.name]
    return abs(level) <= MOST and 0 <= count < layer.size


def _shared_out(judge: Callable[[Levels], float], children: Sequence[Levels]) -> list[float]:
    """Judge children, each in one of the processes; all of them know the losses then."""
    mine = {n: judge(child) for n, child in enumerate(children) if n % world() == rank()}
    everyone = {n: loss for of in exchange("children", mine) for n, loss in of.items()}
    return [everyone[n] for n in range(len(children))]


def _judged(
    fitness: Fitness,
    layout: Layout,
    sparsity: float,
    levels: Levels,
    units: Mapping[str, int],
    *,
    whole: bool,
) -> float:
    loss = fitness(budget_of(layout, sparsity, levels, units), whole=whole)
    if not math.isfinite(loss):
        raise MultiflowError(f"the loss of a budget is {loss:g}; check the data for NaN and Inf, or compute in float32")
    return loss
