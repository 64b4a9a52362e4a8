"""What a benchmark leaves: one `Cell` for every fine-tuned model, one `Pruning` for every set of masks.

Both are lines of JSON in the folder of results: ``cells.jsonl`` and ``prunings.jsonl`` (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from multiflow.base.errors import MultiflowError

DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model pruned or dense, fine-tuned for a task and evaluated."""

    id: str  # hash of `settings`, in which alone two cells differ
    model: str  # its name in the grid
    pruner: str  # its name in the grid; ``dense`` for the baseline
    sparsity: float  # share of zeros among the prunable weights; 0 for the baseline
    task: str  # ``retrieval``, ``captioning``, ``vqa`` or ``classification``
    seed: int  # of calibration, of new weights and of training
    tier: str  # the tier of the grid that the cell belongs to
    error: str | None = None  # what went wrong, in one line; None for a cell that has figures
    score: float | None = None  # the task's main figure on the test data, in percent (CIDEr above 100 too)
    metric: str = ""  # name of the main figure
    figures: Mapping[str, float] = field(default_factory=dict)  # all figures on the test data
    each: Sequence[float] = ()  # the main figure of each test item, whose mean is `score`
    curve: Sequence[tuple[int, float]] = ()  # (step, main figure on the validation data) on the way
    seconds: Mapping[str, float] = field(default_factory=dict)  # ``finetune`` and ``evaluate``
    peak_memory: int = 0  # of the process that computed the cell, in bytes
    steps: int = 0  # optimizer steps
    pruning: str | None = None  # id of the pruning; None for the baseline
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that decide
    git: str | None = None  # revision of the checkout, with ``+`` where it had changes; None outside one
    machine: str = ""  # where it was computed, in words
    finished: str = ""  # ISO time, UTC
    settings: Mapping[str, Any] = field(default_factory=dict)  # everything on which the figures depend


@dataclass(frozen=True)
class Pruning:
    """One calibration and selection: the masks of all sparsities that a pruner made of a model with a seed."""

    id: str  # hash of the settings on which the masks depend
    model: str  # its name in the grid
    pruner: str  # its name in the grid
    seed: int  # of the calibration data, the batches' order and the pruner
    # seconds of the pass over the data; 0 for pruners that need none. Pruners that share statistics share the pass,
    # and each states its whole cost
    calibration: float
    selection: float  # seconds of scores, budgets and masks of all sparsities together
    pairs: int  # calibration pairs
    peak_memory: int  # of the process, in bytes
    layers: Sequence[tuple[str, str, int]]  # (name, group, number of weights) in the order of the layout
    zeros: Mapping[float, Sequence[int]]  # sparsity -> number of dropped weights of each layer
    # of the libraries that decide; nothing in lines that do not say them
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None  # revision of the checkout, with ``+`` where it had changes; None outside one
    machine: str = ""  # where it was computed, in words


def read_record(kind: type[Cell] | type[Pruning], line: Mapping[str, Any]) -> Any:
    """Return the record that a line of JSON holds.

    Raises:
        MultiflowError: the line lacks a field, or has one that is unknown or of another type: another version wrote it.
    """
    values = dict(line)
    try:
        if unknown := values.keys() - kind.__dataclass_fields__.keys():
            raise msgspec.ValidationError(f"it has '{min(unknown)}'")
        return msgspec.convert(values, kind, str_keys=True)
    except (msgspec.ValidationError, OverflowError) as error:
        said = str(error).replace("`", "'")
        raise MultiflowError(
            f"a line of results is not a {kind.__name__.lower()} as this version writes it ({said}); "
            "compute the grid anew with this version, or report it with the one that wrote it"
        ) from None
