"""What was run: settings, versions, machine, time; and how to read the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from multiflow.bench.records import DENSE
from multiflow.report.bench.bootstrap import RESAMPLES
from multiflow.report.bench.cost import total_seconds
from multiflow.report.bench.values import Bench
from multiflow.report.html import percent
from multiflow.report.values import COLLAPSED
from multiflow.report.words import plain

SHORT = 90
"""Longer values of settings are cut."""
SHARED = "a calibration pass that pruners share counts for each of them"


def facts(bench: Bench) -> list[tuple[str, str]]:
    """Return what was run, as names and values."""
    cells, prunings = total_seconds(bench)
    done = [*bench.cells, *bench.failed]
    finished = sorted(cell.finished for cell in done if cell.finished)
    span = f"{day(finished[0])} to {day(finished[-1])}" if finished else "nothing yet"
    seeds = sorted({cell.seed for cell in bench.expected})
    return [
        (
            "cells",
            f"{len(bench.cells)} with figures, {len(bench.failed)} failed, {len(bench.missing)} missing, "
            f"of {len(bench.expected)}",
        ),
        ("models", ", ".join(bench.models)),
        ("pruners", ", ".join(name for name in bench.pruners if name != DENSE)),
        ("seeds", ", ".join(map(str, seeds))),
        (
            "time",
            f"{duration(cells)} of fine-tuning and evaluation, {duration(prunings)} of calibration and selection "
            f"({SHARED})",
        ),
        ("computed", span),
        ("machine", "; ".join(_unique(one.machine or "unknown" for one in bench.records)) or "none yet"),
        ("git", ", ".join(_unique(one.git or "no git" for one in bench.records)) or "none yet"),
    ]


def versions(bench: Bench) -> list[tuple[str, str]]:
    """Return library and version, or versions."""
    names = _unique(name for one in bench.records for name in one.versions)
    return [(name, ", ".join(_unique(one.versions.get(name, "unknown") for one in bench.records))) for name in names]


def shared_settings(bench: Bench) -> list[tuple[str, str]]:
    """Return the settings that all cells have in common, and for the others how many values there are."""
    flat = [dict(_flat(cell.settings)) for cell in bench.cells]
    shown = []
    for name in _unique(name for settings in flat for name in settings):
        values = _unique(plain(settings[name]) if name in settings else "absent" for settings in flat)
        text = values[0] if len(values) == 1 else ", ".join(values) if len(values) <= 6 else f"{len(values)} values"
        shown.append((name, text if len(text) <= SHORT else text[: SHORT - 1] + "\N{HORIZONTAL ELLIPSIS}"))
    return shown


def terms() -> list[tuple[str, str]]:
    """Return the words of the report and what they mean."""
    return [
        ("place", "One model, one task, one sparsity: where pruners are compared."),
        ("cell", "One model, pruned or dense, fine-tuned for one task with one seed."),
        (
            "mean ± std",
            "Mean and sample standard deviation over seeds of the main figure on the test data. A mean over fewer "
            "seeds than others of its column is marked with its number of seeds.",
        ),
        (
            "interval, noise",
            f"95 % of {RESAMPLES:,} resamples (bootstrap): test items drawn with replacement, the same for all pruners "
            "and seeds, and seeds drawn with replacement. Two pruners are compared on the seeds that both have, item "
            "by item; they are within noise of each other where the interval of their difference includes 0. One seed "
            "alone says nothing of the luck of a training: its intervals are too narrow, and three seeds know that "
            "luck only roughly.",
        ),
        (
            "many comparisons",
            "Of 40 comparisons of pruners that are equally good, about one is called a win and one a loss by luck.",
        ),
        (
            "best",
            "The pruner that is ahead of most others at its place, on the seeds they share; with the same seeds "
            "everywhere that is the highest mean. The dense baseline does not take part.",
        ),
        (
            "share of the dense score",
            "Score relative to the dense baseline's, over the seeds that both have of all tasks, then the mean over "
            "tasks, or over models and tasks, each counting alike. Chance is not taken off: a share of nothing learned "
            "is above 0.",
        ),
        ("zeros", "Share of the prunable weights that are zero; embeddings, norms, biases and heads stay dense."),
        ("group", "Layers that belong together: vision, text and fusion, or as a family of models divides its own."),
        ("collapsed", f"At least {percent(COLLAPSED)} zeros in a layer or in a group: hardly a signal passes."),
        (
            "seconds",
            "Calibration and selection for the masks of all sparsities. Pruners that share a calibration pass each "
            "state its whole cost.",
        ),
    ]


def duration(seconds: float) -> str:
    """Write a long time.

    >>> duration(42), duration(600), duration(7300)
    ('42 s', '10 min', '2.0 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 99.5
        else f"{seconds / 60:.0f} min"
        if seconds < 5970
        else f"{seconds / 3600:.1f} h"
    )


def day(iso: str) -> str:
    """Write a time of a record, to the minute."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}"
    except ValueError:
        return iso


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unique(values: Any) -> list[str]:
    return list(dict.fromkeys(values))
