"""``multiflow demo``: the bundled model pruned in several ways, what survives, and a report to look at."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from rich import box
from rich.table import Table
from rich.text import Text
from tyro.conf import arg

from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.runs import whole_folder
from multiflow.base.steps import step_progress
from multiflow.bench.demo import Demo, mask_path, measure
from multiflow.bench.records import DEMO_FILE, Cell
from multiflow.cli.console import show
from multiflow.cli.settings import Device, Dtype, Seed
from multiflow.families.opening import find_device, find_dtype, find_model
from multiflow.pruning.plan import request
from multiflow.report.charts import COLLAPSED
from multiflow.report.demo import REPORT_FILE, demo_document, demo_spreads, demo_values, headline
from multiflow.report.document import page
from multiflow.report.zeros import collapsed


@dataclass(frozen=True)
class DemoSettings:
    """What to prune, how hard, and on how much to measure it.

    Args:
        out: folder to write; that of an earlier demo is replaced
        model: a small X-VLM that knows Shapes: the bundled one, or a folder that 'multiflow pretrain' wrote
        method: names of 'multiflow show pruners'
        sparsity: shares of the weights to drop, in [0, 1)
        scenes: held-out scenes to search, with one caption each
        shortlist: candidates of each search that the matching head ranks again
        batches: calibration batches
        batch_size: pairs a calibration batch
        examples: scenes to show in the report
        seed: seed of scenes, captions and whatever else is random
    """

    out: Annotated[str, arg(metavar="DIR")] = "runs/demo"
    model: Annotated[str, arg(metavar="MODEL")] = "xvlm-shapes"
    method: Annotated[tuple[str, ...], arg(metavar="METHOD ...")] = (
        "multiflow",
        "magnitude-modality",
        "magnitude",
        "random",
    )
    sparsity: Annotated[tuple[float, ...], arg(metavar="S ...")] = (0.63, 0.75, 0.9)
    scenes: Annotated[int, arg(metavar="N")] = 200
    shortlist: Annotated[int, arg(metavar="N")] = 16
    batches: Annotated[int, arg(metavar="N")] = 16
    batch_size: Annotated[int, arg(metavar="B")] = 32
    examples: Annotated[int, arg(metavar="N")] = 6
    seed: Seed = 0
    device: Device = "auto"
    dtype: Dtype = "auto"


def demo(settings: DemoSettings) -> None:
    """Prune, measure, write masks, ``demo.json`` and ``report.html``, and print the table.

    >>> demo(DemoSettings(scenes=24, sparsity=(0.75,), batches=2))                              # doctest: +SKIP
    """
    settings = check(settings)
    out = Path(settings.out)
    with whole_folder(out, lambda place: check_replaceable(place, out)) as folder, step_progress() as step:
        found = measure(find_model(settings.model), folder, settings, command_line(settings), step)
        write_atomically(folder / REPORT_FILE, page(demo_document(found)))
        write_facts(folder / DEMO_FILE, demo_values(found))
    show(result_table(found), headline(found))
    for _, method, what in collapsed(demo_spreads(found)):
        show(f"collapsed: {method}: {what}")
    show(
        f"{sum(found.phases.values()):.0f} s in all; masks and numbers are in {settings.out}, "
        f"the report is {out / REPORT_FILE}"
    )


def check_replaceable(place: Path, out: Path) -> None:
    """Make sure that a folder is not there, empty, or the work of an earlier demo and nothing else."""
    if place.exists() and not place.is_dir():
        raise MultiflowError(f"output folder '{out}' is a file; choose another one with --out DIR")
    try:
        listed = read_facts(place / DEMO_FILE, "record of a demo", "choose another folder")["files"]
        wrote = {DEMO_FILE, REPORT_FILE, *map(str, listed)}
    except (MultiflowError, KeyError, TypeError):
        wrote = set()
    there = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    foreign = next((path for path in there if path not in wrote), None)
    if foreign is not None:
        raise MultiflowError(
            f"output folder '{out}' holds '{foreign}', which no demo wrote; move it, or choose another folder with "
            "--out DIR"
        )


def check(settings: DemoSettings) -> DemoSettings:
    """Check what can be checked before anything is loaded; return the settings without repeated methods."""
    for name, least in (("scenes", 2), ("shortlist", 1), ("batches", 1), ("batch_size", 1), ("examples", 0)):
        if (value := getattr(settings, name)) < least:
            raise MultiflowError(f"--{name.replace('_', '-')} {value} was given; expected at least {least}")
    if not settings.method:
        raise MultiflowError("--method names no method; give at least one of 'multiflow show pruners'")
    for method in settings.method:
        request(method, settings.sparsity)
    find_device(settings.device)
    find_dtype(settings.dtype)
    return replace(settings, method=tuple(dict.fromkeys(settings.method)))


def command_line(settings: DemoSettings) -> str:
    """Return the command that repeats a run.

    >>> command_line(DemoSettings(sparsity=(0.5, 0.75)))
    'multiflow demo --sparsity 0.5 0.75'
    """
    words = ["multiflow", "demo"]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def result_table(found: Demo) -> Table:
    """Make the table that the command prints: the dense model, then all methods sparsity by sparsity."""
    title = f"{found.model}: {found.scenes} searches each way; quality and zeros in percent"
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    made.add_column("method")
    for header in ("zeros", "TR@1", "IR@1", *found.groups, "seconds", "mask kB"):
        made.add_column(header, justify="right")
    made.add_row("dense", "0.0", *_recalls(found.dense), *("0.0" for _ in found.groups), end_section=True)
    spreads = {(one.pruner, one.sparsity): one for one in demo_spreads(found)}
    for sparsity in found.sparsities:
        leaders = found.leaders(sparsity)
        for method in found.methods:
            spread = spreads[method, sparsity]
            made.add_row(
                method,
                _zeros(spread.achieved),
                *_recalls(found.cell(method, sparsity), "bold" if method in leaders else ""),
                *map(_zeros, spread.groups.values()),
                f"{found.seconds(method):.2f}",
                f"{found.files[mask_path(method, sparsity)] / 1e3:.0f}",
                end_section=method == found.methods[-1],
            )
    return made


def _recalls(cell: Cell, style: str = "") -> list[Text]:
    return [Text(f"{cell.figures[name]:.1f}", style) for name in ("TR@1", "IR@1")]


def _zeros(share: float) -> Text:
    return Text(f"{100 * share:.1f}", "bold red" if share >= COLLAPSED else "")
