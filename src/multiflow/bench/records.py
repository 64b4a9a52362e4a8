"""What a benchmark leaves: one `Cell` for every fine-tuned model, one `Pruning` for every set of masks.

Both are lines of JSON in the folder of results: ``cells.jsonl`` and ``prunings.jsonl`` (docs/formats.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiflow.base.errors import MultiflowError

DENSE = "dense"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model pruned or dense, fine-tuned for a task and evaluated.

    Args:
        id: hash of `settings`, in which alone two cells differ.
        model: its name in the grid.
        pruner: its name in the grid; ``dense`` for the baseline.
        sparsity: share of zeros among the prunable weights; 0 for the baseline.
        task: ``retrieval``, ``captioning``, ``vqa`` or ``classification``.
        seed: of calibration, of new weights and of training.
        tier: the tier of the grid that the cell belongs to.
        error: what went wrong, in one line; None for a cell that has figures.
        score: the task's main figure on the test data, in percent (CIDEr above 100 too).
        metric: name of the main figure.
        figures: all figures on the test data.
        each: the main figure of each test item, whose mean is `score`.
        curve: (step, main figure on the validation data) on the way.
        seconds: ``finetune`` and ``evaluate``.
        peak_memory: of the process that computed the cell, in bytes.
        steps: optimizer steps.
        pruning: id of the pruning; None for the baseline.
        versions: of the libraries that decide.
        git: revision of the checkout, with ``+`` where it had changes; None outside one.
        machine: where it was computed, in words.
        finished: ISO time, UTC.
        settings: everything on which the figures depend.
    """

    id: str
    model: str
    pruner: str
    sparsity: float
    task: str
    seed: int
    tier: str
    error: str | None = None
    score: float | None = None
    metric: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    each: Sequence[float] = ()
    curve: Sequence[tuple[int, float]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    steps: int = 0
    pruning: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    machine: str = ""
    finished: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruning:
    """One calibration and selection: the masks of all sparsities that a pruner made of a model with a seed.

    Args:
        id: hash of the settings on which the masks depend.
        model: its name in the grid.
        pruner: its name in the grid.
        seed: of the calibration data, the batches' order and the pruner.
        calibration: seconds of the pass over the data; 0 for pruners that need none. Pruners that share statistics
            share the pass, and each states its whole cost.
        selection: seconds of scores, budgets and masks of all sparsities together.
        pairs: calibration pairs.
        peak_memory: of the process, in bytes.
        layers: (name, group, number of weights) in the order of the layout.
        zeros: sparsity -> number of dropped weights of each layer.
        versions: of the libraries that decide; nothing in lines that do not say them.
        git: revision of the checkout, with ``+`` where it had changes; None outside one.
        machine: where it was computed, in words.
    """

    id: str
    model: str
    pruner: str
    seed: int
    calibration: float
    selection: float
    pairs: int
    peak_memory: int
    layers: Sequence[tuple[str, str, int]]
    zeros: Mapping[float, Sequence[int]]
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None
    machine: str = ""


def read_record(kind: type[Cell] | type[Pruning], line: Mapping[str, Any]) -> Any:
    """Return the record that a line of JSON holds.

    Raises:
        MultiflowError: the line lacks a field or has one that is unknown: another version wrote it.
    """
    try:
        values = dict(line)
        if kind is Pruning:
            values["zeros"] = {float(s): counts for s, counts in values["zeros"].items()}
            values["layers"] = [tuple(layer) for layer in values["layers"]]
        else:
            values["curve"] = [tuple(point) for point in values.get("curve", ())]
        return kind(**values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise MultiflowError(
            f"a line of results is not a {kind.__name__.lower()} as this version writes it ({error}); "
            "compute the grid anew with this version, or report it with the one that wrote it"
        ) from None
