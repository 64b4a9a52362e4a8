"""What the commands print: tables and runs on standard output; warnings and errors on standard error."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multiflow.base import display
from multiflow.base.errors import MultiflowError, counted

if TYPE_CHECKING:
    from multiflow.base.packed import PackedPart
    from multiflow.cli import Command

NUMBER = re.compile(r"[\d.,]+( %| [kMG]B)?")
FIGURES_FILE, EVALUATION_FILE = "figures.json", "evaluation.json"
RECOVERED = ("how", "parts", "before", "after", "passes")  # of a way; everything else are its settings
WIDE = 240  # columns where nobody looks at a terminal: a table is not to be cut


def say(text: str) -> None:
    """Print a line on standard error, on which the library itself has to say something."""
    print(f"multiflow: {text}", file=sys.stderr)


@contextmanager
def announcements() -> Iterator[None]:
    """Print what the library announces, such as the memory it is about to take, as lines on standard error."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("multiflow")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Output(Console):
    """Standard output; a reader that goes away is left to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(*lines: object) -> None:
    """Print tables and lines of text on standard output."""
    console = _Output(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for line in lines:
        if isinstance(line, Table):
            if line.title:  # on a line of its own: rich would wrap it to the width of the table
                console.print(Text(str(line.title), "bold"), soft_wrap=True)
                line.title = None
            console.print(line)
        else:
            console.print(Text(str(line)), soft_wrap=True)


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    made = Table(title=str(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        numbers = bool(cells) and all(NUMBER.fullmatch(row[number].plain) for row in cells)
        made.add_column(str(header), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def percent(share: float) -> str:
    """Write a share as tables of commands do, which compare it with others.

    >>> percent(0.63)
    '63.00 %'
    """
    return display.percent(share, 2, short=False)


def megabytes(size: int) -> str:
    """Write a number of bytes in megabytes.

    >>> megabytes(22_900_000)
    '22.9 MB'
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def wide_rest(parts: Sequence[PackedPart]) -> str:
    """Say what halves a packed file of which much is in float32; empty where that is little."""
    whole = sum(part.size for part in parts)
    wide = sum(part.types.get(name, 0) for part in parts for name in ("float32", "float64"))
    if wide < 0.2 * whole:
        return ""
    return (
        f"{megabytes(wide)} of it ({percent(wide / whole)}) is what is not pruned, in float32: --rest bf16 of "
        "'multiflow export' stores it in half, rounded"
    )


def print_help(commands: Iterable[Command]) -> None:
    rows = [(command.name, command.summary) for command in commands]
    show(
        "Prune a vision-language model once, for every task.\n\nusage: multiflow COMMAND [OPTIONS]\n",
        table("", ("command", ""), rows),
        "multiflow COMMAND --help   the options of a command, with an example\nmultiflow --version        the version",
    )


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show warnings inside the block as one clean line each."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("ignore", r"\d+ of \d+ items skipped")  # the account of a run says so
        yield


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {' '.join(str(message).split())}")


def find_run(source: str) -> bool:
    from multiflow.pruning.result import RUN_FILE

    return any((Path(source) / name).is_file() for name in (*_printers(), RUN_FILE))


def show_run(folder: Path) -> None:
    from multiflow.base.artifacts import read_facts

    printers = _printers()
    name = next((name for name in printers if (folder / name).is_file()), None)
    if name is None:
        raise MultiflowError(f"the run in '{folder}' has not ended; go on with it by its own command and --resume")
    try:
        printers[name](read_facts(folder / name, "result of a run", "run the command again"), folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MultiflowError(f"'{folder / name}' is damaged ({error!r}); run the command again") from error


def print_result(result: Mapping[str, Any], folder: Path) -> None:
    """Print the result of ``multiflow prune`` as a table, and in lines below it how it came about."""
    from multiflow.base.files import is_regular

    how, masks, timings = result["settings"], result["masks"], result["timings"]
    groups = list(dict.fromkeys(group for entry in masks.values() for group in entry["groups"]))
    rows = []
    for asked, entry in masks.items():
        file = folder / entry["file"]
        size = megabytes(file.stat().st_size) if is_regular(file) else "missing"
        shares = [percent(entry["groups"][group]) for group in groups]
        rows.append((asked, percent(entry["sparsity"]), *shares, size))
    options = {"allocation": how["allocation"], **how["hyper"], "seed": how["seed"]}
    listed = ", ".join([how["pattern"], *(f"{name} {value}" for name, value in options.items())])
    title = f"{how['model']} pruned by {how['method']} ({listed})"
    show(table(title, ["sparsity", "achieved", *groups, "mask file"], rows))
    data, recovered = result.get("data"), bool(how.get("recovery"))
    if data and not recovered:
        read = f"{how['batches']} batch{'es' * (how['batches'] != 1)}, {data['samples']} {data['kind']}"
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
    if recovered:
        print_recoveries(result)
    if how.get("changes_weights"):
        show("the kept weights have changed: they lie beside the masks, where multiflow apply finds them")
    if "prunable" in how:
        towers = ", ".join(f"{name} {percent(share)}" for name, share in how["prunable"].items() if name != "model")
        show(f"prunable: {percent(how['prunable']['model'])} of the model" + (f" ({towers})" if towers else ""))
    if unused := how.get("unused"):
        layers = counted(len(unused), "layer")
        show(f"left out, since nothing of the output depends on them: {layers}, first '{unused[0]}'")
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


def print_recovery(report: Mapping[str, Any]) -> None:
    """Print what one recovery was worth: the error of each sub-block or the loss of each way, and of the whole."""
    for way in report["ways"]:
        rows = [(name, *map(digits, of)) for name, of in way.get("parts", {}).items()]
        if rows:
            show(
                table(f"{way['how']}: error of each sub-block on what was held out", ["part", "before", "after"], rows)
            )
        else:
            before, after = digits(way["before"]), digits(way["after"])
            show(f"{way['how']}: loss {before} before, {after} after {way['passes']} passes")
    whole = report["distillation"]
    if whole["before"] is not None:
        gained = f" ({percent(whole['after'] / whole['before'])} is left)" if whole["before"] else ""
        show(
            f"distillation loss on {report['held_out']} of {report['batches']} batches, held out: "
            f"{digits(whole['before'])} before, {digits(whole['after'])} after{gained}"
        )


def print_recoveries(result: Mapping[str, Any]) -> None:
    """Print all recoveries that a result has been through, the first one first: how, of what, on which data."""
    reports = result["settings"]["recovery"]
    for number, report in enumerate(reports):
        ways = ", then ".join(
            f"{way['how']} ({', '.join(f'{name} {value}' for name, value in way.items() if name not in RECOVERED)})"
            for way in report["ways"]
        )
        show("", f"{'recovered' if not number else 'recovered again'} by {ways}")
        if "mask" in report:
            show(f"from {report['mask']}, what it keeps taught by {report['model']}")
        data = report.get("data")
        if data:
            show(f"on {report['batches']} batches, {data['samples']} {data['kind']}: {data['source']}")
            if data["skipped"]:
                names = ", ".join(f"{name} ({why})" for name, why in data["skips"])
                show(f"{data['skipped']} of {data['looked_at']} items skipped: {names}")
        print_recovery(report)
    if "recovery" in result["timings"]:
        show(f"recovered in {result['timings']['recovery']:.1f} s")


def print_recovered(result: Mapping[str, Any], folder: Path) -> None:
    """Print what the latest recovery of a result was worth, and where it lies."""
    print_recovery(result["settings"]["recovery"][-1])
    show(f"in {folder}: {', '.join(entry['file'] for entry in result['masks'].values())}, weights beside")


def digits(value: float | None) -> str:
    """Write a loss.

    >>> digits(0.123456), digits(None)
    ('0.1235', '-')
    """
    return "-" if value is None else f"{value:.4g}"


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
    from multiflow.training.tracking import SEAL, read_metrics

    for seal in sorted(folder.glob(f"*/{SEAL}")):
        read_metrics(seal.parent)
    rows = [(name, f"{value:.0f}" if name == "step" else f"{value:.1f}") for name, value in figures.items()]
    data = "the validation data" if "step" in figures else "held-out scenes"
    show(table(f"{folder / 'model'} on {data}, in percent", ["figure", "value"], rows))


def print_evaluation(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Print the figures of ``multiflow evaluate``; files beside them that are not as they were written are an error."""
    from multiflow.base.artifacts import is_described

    for name, described in evaluation.get("files", {}).items():
        if not is_described(folder / name, described):
            raise MultiflowError(f"'{folder / name}' was altered since it was written; evaluate the model again")
    given, figures = evaluation["settings"], evaluation["figures"]
    title = f"{given['model']} on {evaluation['task']}: {evaluation['items']} items of {evaluation['source']}"
    rows = [(name, f"{value:.2f}") for name, value in figures.items()]
    show(table(f"{title}, split {given['split']}", [evaluation["task"], "%"], rows))


def _printers() -> dict[str, Callable[[Mapping[str, Any], Path], None]]:
    """File that a run leaves when it has ended -> what prints it."""
    from multiflow.bench.records import DEMO_FILE
    from multiflow.pruning.result import RESULT_FILE

    return {
        RESULT_FILE: print_result,
        DEMO_FILE: print_demo,
        FIGURES_FILE: print_figures,
        EVALUATION_FILE: print_evaluation,
    }
