"""What a run left in its folder: masks and their sparsities, what a demo measured, what pretraining reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multiflow.base.artifacts import read_facts
from multiflow.base.errors import MultiflowError
from multiflow.cli.console import megabytes, percent, show, table
from multiflow.pruning.result import RESULT_FILE, RUN_FILE
from multiflow.report.demo import DEMO_FILE

FIGURES_FILE = "figures.json"


def find_run(source: str) -> bool:
    return any((Path(source) / name).is_file() for name in (*PRINTERS, RUN_FILE))


def show_run(folder: Path) -> None:
    name = next((name for name in PRINTERS if (folder / name).is_file()), None)
    if name is None:
        raise MultiflowError(f"the run in '{folder}' has not ended; go on with it by its own command and --resume")
    try:
        PRINTERS[name](read_facts(folder / name, "result of a run", "run the command again"), folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MultiflowError(f"'{folder / name}' is damaged ({error!r}); run the command again") from error


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """Print the result of ``multiflow prune`` as a table, and in lines below it how it came about."""
    how, masks, timings = result["settings"], result["masks"], result["timings"]
    groups = list(dict.fromkeys(group for entry in masks.values() for group in entry["groups"]))
    rows = []
    for asked, entry in masks.items():
        file = folder / entry["file"]
        size = megabytes(file.stat().st_size) if file.is_file() else "missing"
        shares = [percent(entry["groups"][group]) for group in groups]
        rows.append((asked, percent(entry["sparsity"]), *shares, size))
    options = {"allocation": how["allocation"], **how["hyper"], "seed": how["seed"]}
    listed = ", ".join([how["pattern"], *(f"{name} {value}" for name, value in options.items())])
    title = f"{how['model']} pruned by {how['method']} ({listed})"
    show(table(title, ["sparsity", "achieved", *groups, "mask file"], rows))
    data = result.get("data")
    if data:
        read = f"{how['batches']} batches, {data['samples']} {data['kind']}"
        took = timings.get("calibrate", timings.get("steps", 0.0))
        what = "calibrated" if "calibrate" in timings else "ran in steps"
        show(f"{what} on {read} in {took:.1f} s: {data['source']}")
        if data["skipped"]:
            names = ", ".join(f"{name} ({why})" for name, why in data["skips"])
            show(f"{data['skipped']} of {data['looked_at']} items skipped: {names}")
    if "curve" in result:
        print_curve(result, data["kind"] if data else "samples")
    if "select" in timings:
        show(f"scores, budgets and masks in {timings['select']:.1f} s")
    if how.get("changes_weights"):
        show("the kept weights have changed: they lie beside the masks, where multiflow apply finds them")
    if "prunable" in how:
        towers = ", ".join(f"{name} {percent(share)}" for name, share in how["prunable"].items() if name != "model")
        show(f"prunable: {percent(how['prunable']['model'])} of the model" + (f" ({towers})" if towers else ""))
    show(f"in {folder}: {', '.join(entry['file'] for entry in masks.values())}")


def print_curve(result: Mapping[str, Any], kind: str) -> None:
    """Print how far the masks agreed at each doubling of the data, and whether that was enough."""
    curve, asked = result["curve"], f"{100 * result['settings']['until_stable']:g} %"
    if curve:
        title = "weights kept by the masks that those of half the data keep too"
        headers = ["batches", "against", kind, *(f"at {sparsity}" for sparsity in result["masks"])]
        shares = [[f"{100 * point['agreement'][sparsity]:.3f} %" for sparsity in result["masks"]] for point in curve]
        rows = [(p["batches"], p["before"], p["samples"] or "-", *of) for p, of in zip(curve, shares, strict=True)]
        show(table(title, headers, rows))
    if result["stable"]:
        show(f"stable: at least {asked} agree at every sparsity")
    else:
        show(f"not stable: the data ended before at least {asked} agreed at every sparsity; give more to be sure")


def print_demo(demo: Mapping[str, Any], folder: Path) -> None:
    groups = list(demo["rows"][0]["groups"])

    def row(name: str, achieved: float, quality: Mapping[str, float], shares: Mapping[str, float]) -> list[str]:
        found = [f"{quality[key]:.1f}" for key in ("tr1", "ir1")]
        return [name, percent(achieved), *found, *(percent(shares[group]) for group in groups)]

    rows = [row("dense", 0.0, demo["dense"], dict.fromkeys(groups, 0.0))]
    rows += [row(r["method"], r["achieved"], r["quality"], r["groups"]) for r in demo["rows"]]
    title = f"{demo['model']}: retrieval among {demo['scenes']} held-out scenes"
    show(table(title, ["method", "zeros", "TR@1", "IR@1", *groups], rows), f"in {folder}")


def print_figures(figures: Mapping[str, float], folder: Path) -> None:
    rows = [(name, f"{value:.0f}" if name == "step" else f"{value:.1f}") for name, value in figures.items()]
    data = "the validation data" if "step" in figures else "held-out scenes"
    show(table(f"{folder / 'model'} on {data}, in percent", ["figure", "value"], rows))


PRINTERS: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    RESULT_FILE: print_result,
    DEMO_FILE: print_demo,
    FIGURES_FILE: print_figures,
}
"""File that a run leaves when it has ended -> what prints it."""
