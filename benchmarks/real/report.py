"""The report on real weights: that of the benchmark, with what holds here: no fine-tuning, towers of own scales."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.bench.records import CELLS, DENSE, Results
from multiflow.report.bench import write_report
from multiflow.report.bench.page import bench_document
from multiflow.report.bench.results import Bench, gather
from multiflow.report.document import Document, Pairs, Section, markdown, page
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import count, listed, nominal, number

TITLE, FACTS = "Real weights", "facts.json"
NOTES = (
    "Models, pictures, sounds and words are those of others, out of public packages; only the last layers of the "
    "aligned model were trained here.",
    "No cell is fine-tuned: figures are those straight after pruning, or after a recovery without labels (-blocks).",
)
CELL = "One model, pruned or dense, and one figure of it on data that no calibration has seen, with one seed."
SIZE = "packed MB"


def write_real_report(folder: Path) -> list[Path]:
    """Write the report of a folder of results; return its files.

    Raises:
        MultiflowError: the folder holds no results.
    """
    results = Results(folder)
    cells = list(results.cells().values()) if (folder / CELLS).is_file() else []
    if not cells:
        raise MultiflowError(f"'{folder}' holds no {CELLS}; run 'python -m benchmarks.real run' first")
    prunings, expected = list(results.prunings().values()), results.expected()
    out = folder / "report"
    paths = write_report(cells, prunings, expected, out, TITLE, NOTES)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    document = real_document(gather(cells, prunings, expected, TITLE, NOTES), facts)
    write_atomically(out / "report.html", page(document))
    write_atomically(out / "report.md", markdown(document))
    return paths


def real_document(bench: Bench, facts: Mapping[str, Mapping[str, Any]]) -> Document:
    """Return the report, with the scales of the towers and the sizes where they are known.

    Args:
        bench: what was found.
        facts: model -> facts of its world.
    """
    document = bench_document(bench)
    own = [section for section in (scale_section(facts), size_section(bench)) if section is not None]
    rest = [_said_anew(section) for section in document.sections]
    done, whole = len(bench.cells), len(bench.expected)
    return replace(
        document,
        lead=_lead(bench),
        facts=[(str(done) if done == whole else f"{done} of {whole}", "cells have figures"), *document.facts[1:3]],
        sections=[*rest[:1], *own, *rest[1:]],
    )


def _lead(bench: Bench) -> str:
    zeros = sorted({cell.sparsity for cell in bench.expected if cell.pruner != DENSE})
    figures = list(dict.fromkeys(cell.task for cell in bench.expected))
    pruners = count(sum(name != DENSE for name in bench.pruners), "pruner")
    return (
        f"{pruners.capitalize()} at {listed([nominal(s) for s in zeros])} zeros on {listed(list(bench.models))}, each "
        f"pruned once without knowing what for and measured as it stands: {'; '.join(figures)}."
    )


def _said_anew(section: Section) -> Section:
    """Say what a cell is here, where the benchmark's words speak of fine-tuning."""
    if section.id != "reading":
        return section
    terms = [
        (name, CELL if name == "cell" else text)
        for block in section.blocks
        if isinstance(block, Pairs)
        for name, text in block.pairs
    ]
    return replace(section, blocks=[Pairs(terms)])


def scale_section(facts: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """Return the table of how large the weights of each tower are; None where no model says it."""
    rows = [
        Row(
            [
                TableCell(model, model),
                TableCell(group, group),
                TableCell(str(of["layers"]), of["layers"]),
                TableCell(f"{of['weights']:,}", of["weights"]),
                TableCell(number(of["mean magnitude"], 3), of["mean magnitude"]),
                TableCell(number(of["root mean square"], 3), of["root mean square"]),
            ]
        )
        for model, said in facts.items()
        for group, of in said.get("towers", {}).items()
    ]
    if not rows:
        return None
    titles = ("layers", "weights", "mean magnitude", "root mean square")
    columns = [Column("model"), Column("group"), *(Column(title, class_="number") for title in titles)]
    lead = (
        "How large the prunable weights of each group are, before pruning. Where one group has far smaller weights "
        "than another, a ranking over all of them takes its zeros there."
    )
    return Section("scales", "The towers' own scales", [Table(columns, rows, "scales of the weights")], lead)


def size_section(bench: Bench) -> Section | None:
    """Return the table of packed sizes, mean over pruners; None where no cell says it."""
    found: dict[str, dict[float, list[float]]] = {}
    for cell in bench.cells:
        if SIZE in cell.figures:
            found.setdefault(cell.model, {}).setdefault(cell.sparsity, []).append(cell.figures[SIZE])
    zeros = sorted({sparsity for of in found.values() for sparsity in of})
    if not zeros:
        return None
    rows = [Row([TableCell(model, model), *(_size(of.get(zero)) for zero in zeros)]) for model, of in found.items()]
    columns = [Column("model"), *(Column(nominal(sparsity), "MB at zeros of", class_="number") for sparsity in zeros)]
    lead = "What a pruned model weighs packed: a bit a weight, kept values in bfloat16, the rest in float32 as it came."
    return Section("sizes", "Packed sizes", [Table(columns, rows, "packed sizes")], lead)


def _size(values: list[float] | None) -> TableCell:
    return TableCell("-") if not values else TableCell(number(fmean(values), 3), fmean(values))
