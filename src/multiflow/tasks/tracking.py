"""Metrics of a run, kept as JSON lines and, where it is installed, in TensorBoard."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

FILE = "metrics.jsonl"


class Track(Protocol):
    """Takes the metrics of a step."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record."""


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
def track_metrics(run_dir: Path, start: int) -> Iterator[Track]:
    """Yield a function that appends a record to ``metrics.jsonl`` and to TensorBoard.

    Records of steps after ``start`` are dropped first: the resumed run writes them again.
    """
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
