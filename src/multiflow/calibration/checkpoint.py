"""Calibration that goes on where it was killed.

The sums of the batches done so far are written every few batches, whole or not at all. A run that starts again with
the same settings and weights skips those batches; since float64 sums go on where they stopped, as do buffers that a
loss moves (queues, momentum copies), and batches are a function of their position, its masks are those of a run that
was never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from multiflow.base.artifacts import check_tensors, read_tensors, write_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import exchange, rank, world
from multiflow.base.runs import check_same
from multiflow.calibration.stats import Stats, read_stats


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a calibration saves itself.

    Args:
        path: the file, made when the first ``every`` batches are done and deleted when the run ends well.
        every: batches between two writes; several processes write at the end of a round.
        keep: leave the file when the run ends well too, to whoever saves the result first.

    Of several processes each saves its own statistics; the state of a method that works in steps is the same in all of
    them, and the first one saves it for all.
    """

    path: str | Path
    every: int = 8
    keep: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise MultiflowError(
                f"every={self.every!r} of a checkpoint; expected a whole number of batches, at least 1"
            )

    def load(self, settings: Mapping[str, Any]) -> Stats | None:
        """Read the statistics of the batches done; None where there is no file yet.

        Raises:
            MultiflowError: the file belongs to a run with other settings, and the message says which differ; or no file
                can be written there.
        """
        if not self._there():
            return None
        stats, extra = read_stats(self.path)
        if not isinstance(saved := extra.get("settings"), dict):
            raise MultiflowError(f"'{self.path}' holds statistics, but not of a run to go on with; use another file")
        self._check(saved, settings)
        return stats

    def save(self, stats: Stats, settings: Mapping[str, Any], *, now: bool = False) -> None:
        """Write the statistics after a batch, if it is time to or ``now`` is said."""
        if now or stats.batches % self.every < world():
            stats.save(self.path, settings=dict(settings))

    def load_state(
        self,
        settings: Mapping[str, Any],
        like: Mapping[str, Tensor] | None = None,
        most: Mapping[str, int] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read what `save_state` wrote, tensors and facts; None where there is no file yet.

        Args:
            settings: of the run.
            like: name -> tensor of the shape and type that the file's must have; with None that is the caller's to
                check.
            most: name of a fact -> the largest number that it can be.

        Raises:
            MultiflowError: as `load`; or tensors and numbers that cannot be of this run.
        """
        found = None
        if self._there():
            tensors, header = read_tensors(self.path, "checkpoint")
            saved, facts = header.get("settings"), header.get("facts")
            if not isinstance(saved, dict) or not isinstance(facts, dict):
                raise MultiflowError(f"'{self.path}' holds no state of a run in steps; delete it or use another")
            self._check(saved, settings)
            if like is not None:
                wanted = {name: (tuple(tensor.shape), [tensor.dtype]) for name, tensor in like.items()}
                check_tensors(self.path, tensors, wanted, "delete it", finite=False)
            for name, limit in (most or {}).items():
                if type(number := facts.get(name)) is not int or not 0 <= number <= limit:
                    raise MultiflowError(
                        f"checkpoint '{self.path}' says {name}={number!r}, and expected is a whole number of at most "
                        f"{limit}; delete it"
                    )
            found = tensors, facts
        everyone = exchange("checkpoint", found and found[1])
        if any(facts != everyone[0] for facts in everyone):
            raise MultiflowError(
                f"the processes do not find the same in checkpoint '{self.path}'; put it where all of them can read it"
            )
        return found

    def save_state(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write where a method stands that works in steps: tensors, and facts that JSON can say."""
        if rank() == 0:
            write_tensors(self.path, tensors, {"settings": dict(settings), "facts": dict(facts)})

    def part(self, name: str) -> Checkpoint:
        """Return the checkpoint of a part of the run, a file beside this one."""
        path = Path(self.path)
        return replace(self, path=path.with_name(f"{path.stem}-{name}{path.suffix}"))

    def of_process(self) -> Checkpoint:
        """Return the checkpoint of this process: a file of its own for each but the first."""
        return self.part(f"rank{rank()}") if rank() else self

    def _there(self) -> bool:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MultiflowError(
                f"cannot write checkpoint '{self.path}' ({error.strerror or error}); choose another place"
            ) from error
        return Path(self.path).exists()

    def _check(self, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        fix = "use the same ones, or delete the checkpoint to begin afresh"
        check_same(f"checkpoint '{self.path}'", saved, settings, fix=fix)

    def delete(self) -> None:
        """Remove the file, unless it is to be kept: the run has ended well."""
        if not self.keep:
            Path(self.path).unlink(missing_ok=True)
