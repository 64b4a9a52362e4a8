"""Folders of runs and results as older versions wrote them, without checksums: shown, and made into a report."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiflow.bench.records import Results
from multiflow.cli.bench import gather, title
from multiflow.report.bench import write_report
from tests.report.bench.conftest import make_cell, make_pruning
from tests.robust.fuzz import Target
from tests.robust.targets.artifacts import read_shown, result_of


def _unsigned(path: Path) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({name: of for name, of in value.items() if name not in ("format", "checksum")}))


def _run(folder: Path) -> None:
    result_of("magnitude", folder)
    _unsigned(folder / "result.json")


def _figures(folder: Path) -> None:
    folder.mkdir()
    (folder / "figures.json").write_text(json.dumps({"step": 4, "tr1": 50.0}))


def _results(folder: Path) -> None:
    folder.mkdir()
    cells = [make_cell(pruner, seed=seed, items=8) for pruner in ("dense", "wanda") for seed in (0, 1)]
    (folder / "cells.jsonl").write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    (folder / "prunings.jsonl").write_text(json.dumps(asdict(make_pruning("wanda", 0))) + "\n")
    (folder / "config.yaml").write_text("name: a\n")


def read_results(folder: Path) -> Any:
    """Write a report of results, and return the names of its files."""
    results = Results(folder)
    cells, expected, notes = gather(results)
    prunings = list(results.prunings().values())
    with tempfile.TemporaryDirectory() as place:  # not in the folder: what is found is kept as it was read
        return [path.name for path in write_report(cells, prunings, expected, Path(place), title(results), notes)]


TARGETS = [
    Target("run-old", _run, read_shown, weight=0.5),
    Target("run-figures", _figures, read_shown, weight=0.2),
    Target("results-old", _results, read_results, weight=0.1),
]
