"""What pruning costs, what it leaves of the dense score, and what the whole grid took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.values import Bench, Entry, Place, score_of


@dataclass(frozen=True)
class Cost:
    """What a pruner costs on one model, mean over the prunings of all seeds.

    Args:
        model: name in the grid.
        pruner: name in the grid.
        calibration: seconds.
        selection: seconds.
        pairs: calibration pairs; the most.
        peak_memory: bytes; the most.
        prunings: how many, one a seed.
        cell: mean seconds of fine-tuning and evaluating one cell.
    """

    model: str
    pruner: str
    calibration: float
    selection: float
    pairs: int
    peak_memory: int
    prunings: int
    cell: float | None

    @property
    def seconds(self) -> float:
        """Calibration and selection."""
        return self.calibration + self.selection


class Kept(NamedTuple):
    """What a pruner keeps of the dense score of a model at one sparsity, mean over its tasks.

    Args:
        share: in percent, over the seeds that the pruner and the dense baseline have of all tasks.
        seeds: their number.
        few: the same, where others have more; else None.
    """

    share: float
    seeds: int
    few: int | None = None


def costs(bench: Bench) -> list[Cost]:
    """Return the cost of every pruner on every model, in the order of the grid."""
    found: dict[tuple[str, str], list[Pruning]] = {}
    for pruning in bench.prunings:
        found.setdefault((pruning.model, pruning.pruner), []).append(pruning)
    keys = [(model, pruner) for model in bench.models for pruner in bench.pruners if (model, pruner) in found]
    return [_cost(bench, *key, found[key]) for key in keys]


def total_seconds(bench: Bench) -> tuple[float, float]:
    """Return the seconds of all cells and of all prunings; a shared calibration counts with each pruner."""
    prunings = {pruning.id: pruning for pruning in bench.prunings}.values()
    return sum(map(cell_seconds, bench.cells)), sum(one.calibration + one.selection for one in prunings)


def kept(bench: Bench, model: str, sparsity: float) -> dict[str, Kept]:
    """Return pruner -> what it keeps of the dense score; of those that have all tasks of the grid at the sparsity."""
    asked = [c for c in bench.expected if (c.model, c.sparsity) == (model, sparsity) and c.pruner != DENSE]
    tasks = {cell.task for cell in asked}
    tracks = [track for track in bench.tracks(model) if track.task in tasks]
    if {track.task for track in tracks} != tasks:
        return {}
    found = {name: share for name in bench.rivals if (share := _kept(bench, tracks, name, sparsity))}
    most = max((one.seeds for one in found.values()), default=0)
    return {name: one._replace(few=one.seeds if one.seeds < most else None) for name, one in found.items()}


def cell_seconds(cell: Cell) -> float:
    """Return the seconds of fine-tuning and evaluation."""
    return sum(cell.seconds.values())


def _cost(bench: Bench, model: str, pruner: str, prunings: list[Pruning]) -> Cost:
    cells = [cell_seconds(cell) for cell in bench.cells if (cell.model, cell.pruner) == (model, pruner)]
    return Cost(
        model,
        pruner,
        fmean(p.calibration for p in prunings),
        fmean(p.selection for p in prunings),
        max(p.pairs for p in prunings),
        max(p.peak_memory for p in prunings),
        len(prunings),
        fmean(cells) if cells else None,
    )


def _kept(bench: Bench, tracks: Sequence[Place], pruner: str, sparsity: float) -> Kept | None:
    sparse = [bench.entries.get((track._replace(sparsity=sparsity), pruner)) for track in tracks]
    dense = [bench.entries.get((track, DENSE)) for track in tracks]
    scores = [_scores(entry) for entry in (*sparse, *dense)]
    seeds = set.intersection(*map(set, scores)) if scores else set()
    wholes = [sum(of[seed] for seed in seeds) for of in scores[len(tracks) :]]
    if not seeds or not all(wholes):
        return None
    shares = [100 * sum(of[seed] for seed in seeds) / whole for of, whole in zip(scores, wholes, strict=False)]
    return Kept(fmean(shares), len(seeds))


def _scores(entry: Entry | None) -> dict[int, float]:
    return {cell.seed: score_of(cell) for cell in entry.cells} if entry else {}
