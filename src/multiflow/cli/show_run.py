"""What a run left in its folder: masks, their sparsities, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multiflow.cli.console import megabytes, percent, show, table
from multiflow.errors import MultiflowError
from multiflow.result import RESULT_FILE


def find_run(source: str) -> bool:
    """Whether a path is the folder of a run that has ended."""
    return (Path(source) / RESULT_FILE).is_file()


def show_run(folder: Path) -> None:
    """Print what ``result.json`` in a folder says."""
    path = folder / RESULT_FILE
    try:
        print_result(json.loads(path.read_text(encoding="utf-8")), folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MultiflowError(f"'{path}' is no result of multiflow prune, or a damaged one ({error!r})") from error


def print_result(result: dict[str, Any], folder: Path) -> None:
    """Print a result as a table, and in lines below it how it came about."""
    how, masks, timings = result["settings"], result["masks"], result["timings"]
    groups = list(dict.fromkeys(group for entry in masks.values() for group in entry["groups"]))
    rows = []
    for asked, entry in masks.items():
        file = folder / entry["file"]
        size = megabytes(file.stat().st_size) if file.is_file() else "missing"
        shares = [percent(entry["groups"][group]) for group in groups]
        rows.append((asked, percent(entry["sparsity"]), *shares, entry["file"], size))
    options = {"allocation": how["allocation"], **how["hyper"], "seed": how["seed"]}
    listed = ", ".join([how["pattern"], *(f"{name} {value}" for name, value in options.items())])
    title = f"{how['model']} pruned by {how['method']} ({listed})"
    show(table(title, ["sparsity", "achieved", *groups, "file", "size"], rows))
    data = result.get("data")
    if data:
        read = f"{how['batches']} batches, {data['samples']} {data['kind']}"
        show(f"calibrated on {read} in {timings['calibrate']:.1f} s: {data['source']}")
        if data["skipped"]:
            names = ", ".join(f"{name} ({why})" for name, why in data["skips"])
            show(f"{data['skipped']} of {data['looked_at']} images skipped: {names}")
    show(f"scores, budgets and masks in {timings['select']:.1f} s", f"in {folder}")
