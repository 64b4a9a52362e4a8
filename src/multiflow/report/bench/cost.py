"""What pruning costs, and what the whole grid took."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from multiflow.report.bench.values import Bench
from multiflow.report.records import Cell, Pruning


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
        prunings: how many.
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


def costs(bench: Bench) -> list[Cost]:
    """Return the cost of every pruner on every model, in the order of the grid."""
    found: dict[tuple[str, str], list[Pruning]] = {}
    for pruning in bench.prunings:
        found.setdefault((pruning.model, pruning.pruner), []).append(pruning)
    keys = [(model, pruner) for model in bench.models for pruner in bench.pruners if (model, pruner) in found]
    return [_cost(bench, *key, found[key]) for key in keys]


def total_seconds(bench: Bench) -> tuple[float, float]:
    """Return the seconds of all cells and of all prunings; a shared calibration counts with each pruning."""
    cells = sum(map(cell_seconds, bench.cells))
    return cells, sum(pruning.calibration + pruning.selection for pruning in bench.prunings)


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
