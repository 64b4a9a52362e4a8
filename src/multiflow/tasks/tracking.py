"""Metrics of a run, kept as JSON lines and, where it is installed, in TensorBoard."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

FILE = "metrics.jsonl"


class Track(Protocol):
    """Takes the metrics of a step."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record."""


@dataclass
class Meter:
    """Means of the figures, and samples per second, since the last reading."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, figures: Mapping[str, Tensor | float], samples: int) -> None:
        """Take the figures of one step (not every step needs to have the same ones)."""
        for name, figure in figures.items():
            figure = figure.detach() if isinstance(figure, Tensor) else figure
            self.sums[name] = self.sums.get(name, 0.0) + figure
            self.counts[name] = self.counts.get(name, 0) + 1
        self.samples += samples

    def read(self) -> dict[str, float]:
        """Return the means and the rate, and start afresh."""
        now = time.monotonic()
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        rate = self.samples / max(now - self.since, 1e-9)
        self.sums, self.counts, self.samples, self.since = {}, {}, 0, now
        return {**means, "rate": rate}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run in order; a last line torn by a kill is left out."""
    path = run_dir / FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


@contextmanager
def track_metrics(run_dir: Path, start: int, *, write: bool = True) -> Iterator[Track]:
    """Yield a function that appends a record to ``metrics.jsonl`` and to TensorBoard.

    Records of steps after ``start`` are dropped first: the resumed run writes them again. Of several processes one
    alone may ``write``.
    """
    if not write:
        yield lambda step, metrics: None
        return
    kept = [record for record in read_metrics(run_dir) if record["step"] <= start]
    path, fresh = run_dir / FILE, run_dir / f".{FILE}.tmp"
    fresh.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(fresh, path)
    board = _tensorboard(run_dir, start)
    try:
        with path.open("a") as file:

            def track(step: int, metrics: Mapping[str, float]) -> None:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
                file.flush()
                if board is not None:
                    for name, value in metrics.items():
                        board.add_scalar(name, value, step)

            yield track
    finally:
        if board is not None:
            board.close()


def _tensorboard(run_dir: Path, start: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(run_dir, purge_step=start + 1)
