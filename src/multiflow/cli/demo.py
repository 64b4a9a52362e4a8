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

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.cli.console import show
from multiflow.cli.demo_folder import replaced_folder
from multiflow.cli.demo_run import measure
from multiflow.cli.progress import step_progress
from multiflow.cli.settings import Device, Dtype, Seed
from multiflow.families.opening import find_device, find_dtype, find_model
from multiflow.pruning.plan import request
from multiflow.report.demo import demo_page
from multiflow.report.values import COLLAPSED, DEMO_FILE, REPORT_FILE, Demo
from multiflow.report.words import collapses, headline


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
    with replaced_folder(Path(settings.out)) as folder, step_progress() as step:
        found = measure(settings, find_model(settings.model), folder, command_line(settings), step)
        write_atomically(folder / REPORT_FILE, demo_page(found))
        write_atomically(folder / DEMO_FILE, found.to_json())
    show(result_table(found), headline(found))
    for method, what in collapses(found):
        show(f"collapsed: {method}: {what}")
    show(
        f"{sum(found.phases.values()):.0f} s in all; masks and numbers are in {settings.out}, "
        f"the report is {Path(settings.out) / REPORT_FILE}"
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
    recalls = (f"{found.dense.tr1:.1f}", f"{found.dense.ir1:.1f}")
    made.add_row("dense", "0.0", *recalls, *("0.0" for _ in found.groups), end_section=True)
    for sparsity in found.sparsities:
        rows = [found.row(method, sparsity) for method in found.methods]
        leaders = found.leaders(sparsity)
        for row in rows:
            bold = "bold" if row.method in leaders else ""
            made.add_row(
                row.method,
                _zeros(row.achieved),
                *(Text(f"{recall:.1f}", bold) for recall in (row.quality.tr1, row.quality.ir1)),
                *map(_zeros, row.groups.values()),
                f"{row.prune_seconds:.2f}",
                f"{row.mask_bytes / 1e3:.0f}",
                end_section=row is rows[-1],
            )
    return made


def _zeros(share: float) -> Text:
    """A share of zeros, loud where it is a collapse."""
    return Text(f"{100 * share:.1f}", "bold red" if share >= COLLAPSED else "")
