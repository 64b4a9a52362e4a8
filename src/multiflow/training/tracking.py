"""Metrics of a run: JSON lines, TensorBoard where it is installed, and Weights & Biases where it was asked for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from torch import Tensor

from multiflow.base.artifacts import describe_file, is_described, next_line, read_facts, read_lines, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_text, write_atomically

FILE = "metrics.jsonl"
SEAL = "metrics.jsonl.end"
"""Size and CRC-32 of that file once a run has ended: lines that it loses at its end are noticed from then on."""
MOST_BYTES = 2**30  # of the lines
WANDB_RUN = "wandb-run.txt"


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
        now = time.monotonic()
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        rate = self.samples / max(now - self.since, 1e-9)
        self.sums, self.counts, self.samples, self.since = {}, {}, 0, now
        return {**means, "rate": rate}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run in order; of one that was killed, a torn last line is left out.

    Raises:
        MultiflowError: a line was altered or is missing; of a run that has ended, also at the end.
    """
    path, seal = run_dir / FILE, run_dir / SEAL
    fix = f"delete it and '{seal.name}', and the run goes on without these records"
    if seal.exists():
        described = str(read_facts(seal, "word on the metrics of a run", fix).get(FILE))
        if not is_described(path, described):
            raise MultiflowError(
                f"'{path}' was altered since the run ended, or has lost lines at its end: it had {described}; {fix}"
            )
    if not path.exists():
        return []
    return read_lines(read_text(path, "lines of JSON", MOST_BYTES), f"'{path}'", fix)


@contextmanager
def track_metrics(run_dir: Path, start: int, *, write: bool = True, wandb: str | None = None) -> Iterator[Track]:
    """Yield a function that appends a record to ``metrics.jsonl``, TensorBoard and a project of Weights & Biases.

    Records of steps after ``start`` are dropped first: the resumed run writes them again. What ends without an error is
    sealed. Of several processes one alone may ``write``.

    Raises:
        MultiflowError: the file of an earlier part of the run was altered, or ``wandb`` names a project, and the
            package is missing.
    """
    if not write:
        yield lambda step, metrics: None
        return
    with ExitStack() as stack:
        boards = [_tensorboard(run_dir, start, stack), _wandb(run_dir, wandb, stack)]
        lines = [""]
        for record in read_metrics(run_dir):
            if record["step"] <= start:
                lines.append(next_line(record, lines[-1]))
        last, path = lines[-1], write_atomically(run_dir / FILE, "".join(lines))
        (run_dir / SEAL).unlink(missing_ok=True)
        file = stack.enter_context(path.open("a"))

        def track(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal last
            last = next_line({"step": step, **metrics}, last)
            file.write(last)
            file.flush()
            for board in boards:
                board(step, metrics)

        yield track
        write_facts(run_dir / SEAL, {FILE: describe_file(path)})  # the run has come to its end


def _tensorboard(run_dir: Path, start: int, stack: ExitStack) -> Track:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return lambda step, metrics: None
        board = SummaryWriter(run_dir, purge_step=start + 1)
    stack.callback(board.close)

    def track(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            board.add_scalar(name, value, step)

    return track


def _wandb(run_dir: Path, project: str | None, stack: ExitStack) -> Track:
    """Start a run in a project, or go on with the one that this folder began."""
    if project is None:
        return lambda step, metrics: None
    try:
        import wandb
    except ImportError:
        raise MultiflowError(
            f"wandb project '{project}' was given, and the package wandb is missing; in the checkout: "
            "pip install -e '.[wandb]'"
        ) from None
    place = run_dir / WANDB_RUN
    if not place.exists():
        place.write_text(uuid4().hex[:8] + "\n")
    run = wandb.init(
        project=project, id=place.read_text().strip(), dir=run_dir, name=run_dir.resolve().parent.name, resume="allow"
    )
    stack.callback(run.finish)
    return lambda step, metrics: run.log(dict(metrics), step=step)
