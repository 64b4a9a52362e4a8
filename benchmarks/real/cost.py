"""How long the grid takes: processor seconds of its parts, as records hold them, summed over all prunings.

What no record tells is taken from the same pruner on another model, by the number of prunable weights: layers of
these models have the same shapes. What no model tells is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.real.grid import EVALUATE, PRUNE, RECOVER, Job
from multiflow.bench.records import DENSE, Cell, Pruning


@dataclass
class Rates:
    """Seconds of one sparsity: of an evaluation by model, of pruning and recovering by model and pruner."""

    weights: dict[str, int]  # model -> prunable weights
    evaluate: dict[str, list[float]] = field(default_factory=dict)
    make: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def of_model(self, model: str) -> float | None:
        """Return what an evaluation takes."""
        return self._by_weights({name: fmean(of) for name, of in self.evaluate.items()}, model)

    def of_pruner(self, model: str, pruner: str) -> float | None:
        """Return what pruning to one sparsity takes, and recovering where that belongs to it."""
        return self._by_weights({name: fmean(of) for (name, other), of in self.make.items() if other == pruner}, model)

    def _by_weights(self, known: dict[str, float], model: str) -> float | None:
        if model in known:
            return known[model]
        scaled = [seconds / self.weights[name] for name, seconds in known.items() if self.weights.get(name)]
        return fmean(scaled) * self.weights[model] if scaled and model in self.weights else None


def rates_of(cells: Iterable[Cell], prunings: Iterable[Pruning]) -> Rates:
    """Read the seconds out of records; cells that were written without them say nothing."""
    rates = Rates({one.model: sum(size for *_, size in one.layers) for one in prunings})
    seen: set[tuple[str, str, float, int]] = set()
    for cell in cells:
        key = (cell.model, cell.pruner, cell.sparsity, cell.seed)
        if EVALUATE not in cell.figures or key in seen:  # the figures of a model share what it took
            continue
        seen.add(key)
        rates.evaluate.setdefault(cell.model, []).append(cell.figures[EVALUATE])
        if cell.pruner != DENSE:
            took = cell.figures[PRUNE] + cell.figures[RECOVER]
            rates.make.setdefault((cell.model, cell.pruner), []).append(took)
    return rates


def estimate(jobs: Sequence[Job], rates: Rates) -> tuple[dict[str, float], list[str]]:
    """Return the seconds of each tier, and the parts that nothing is known of, as ``model pruner``."""
    tiers: dict[str, float] = {}
    unknown: dict[str, None] = {}
    for job in jobs:
        parts = [rates.of_model(job.model)]
        parts += [rates.of_pruner(job.model, job.pruner)] if job.pruner != DENSE else []
        if None in parts:
            unknown[f"{job.model} {job.pruner}"] = None
        took = len(job.sparsities) * sum(part for part in parts if part is not None)
        tiers[job.tier] = tiers.get(job.tier, 0.0) + took
    return tiers, list(unknown)


def cost_lines(jobs: Sequence[Job], rates: Rates) -> list[str]:
    """Return what to print: minutes of one core, tier by tier and in all."""
    tiers, unknown = estimate(jobs, rates)
    lines = [f"{seconds / 60:6.0f} minutes of a core: {tier}" for tier, seconds in tiers.items()]
    lines.append(f"{sum(tiers.values()) / 60:6.0f} minutes of a core in all, without fetching and aligning")
    return lines + ([f"not counted, nothing is known of it: {', '.join(unknown)}"] if unknown else [])
