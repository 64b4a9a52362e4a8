"""The page of a comparison of pruners on one model: one table, how alike the masks are, and where errors arise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.display import html_table
from multiflow.formats.worth import FormWorth, measure_worth
from multiflow.pruning.comparison import Compared, Comparison
from multiflow.report.charts import Axis, Look, Point, Series, chart, looks, round_axis
from multiflow.report.document import Block, Document, Drawing, Drawings, Pairs, Section, Text, write_document
from multiflow.report.pruned import spread
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import count, listed, nominal, number, percent, seconds, size
from multiflow.report.worth import worth_sections
from multiflow.report.zeros import collapse_verdict

TERMS: list[tuple[str, Text]] = [
    (
        "error of a block",
        "Squared difference between the outputs of a block (attention, MLP or both, as the model numbers them) in the "
        "sparse and in the dense model, over the squared length of the dense one's; of a group, the mean over its "
        "blocks. 0 is the dense model, 1 is as far off as an output of zeros.",
    ),
    (
        "answers that stay",
        "Share of the dense model's answers that the sparse one gives too, on data held out from calibration, without "
        "labels: the nearest text of an image and the nearest image of a text, or the most likely next token or class.",
    ),
    ("overlap", "Of the weights that either of two masks keeps, the share that both keep."),
    (
        "what it does not say",
        "Nothing was fine-tuned or recovered, and an answer that stays may be a wrong one. Methods that look lost here "
        "may come back with training.",
    ),
]


def comparison_worth(
    found: Comparison, model: nn.Module, adapter: Adapter, batch: Any, seconds: float = 4.0
) -> tuple[FormWorth, ...]:
    """Measure what the most faithful masks of each sparsity cost on this machine, see `multiflow.formats.worth`."""
    best: dict[float, Compared] = {}
    for sparsity in found.sparsities:
        here = [one for one in found.pruners if sparsity in one.fidelity and one.fidelity[sparsity].loyalty is not None]
        if here:
            best[sparsity] = max(here, key=lambda one: one.fidelity[sparsity].loyalty or 0.0)
    if not best:
        return ()
    return measure_worth(
        model,
        {sparsity: one.result.masks[sparsity] for sparsity, one in best.items()},
        {sparsity: (one.result.weights or {}).get(sparsity) for sparsity, one in best.items()},
        quality={0.0: 100.0, **{s: 100 * (one.fidelity[s].loyalty or 0.0) for s, one in best.items()}},
        by={sparsity: one.method for sparsity, one in best.items()},
        adapter=adapter,
        batch=batch,
        seconds=seconds,
    )


def comparison_document(found: Comparison, model: str, data: str, worth: Sequence[FormWorth] = ()) -> Document:
    """Make the page of a comparison.

    Args:
        found: what was measured.
        model: as the user named it.
        data: in words, what it was measured on.
        worth: what some of the models cost, see `comparison_worth`.
    """
    names = [one.method for one in found.pruners]
    styles = looks(names)
    spreads = [spread(one.result.masks[s], one.method, model, s) for one in found.pruners for s in one.result.masks]
    collapse: Block = collapse_verdict(spreads)
    charts = [_error_chart(found, sparsity, styles) for sparsity in found.sparsities]
    return Document(
        title=f"Pruners on {model}",
        headline=_headline(found),
        lead=f"{listed(names)} on {model}, {data}; what they share was measured once, in {seconds(found.calibration)}.",
        facts=[(number(len(names)), "methods"), (number(len(found.sparsities)), "sparsities")],
        sections=[
            Section("table", "What is left of the model", [collapse, comparison_table(found)]),
            *worth_sections(worth, "answers that stay"),
            Section("blocks", "Where errors arise", [Drawings(charts)], "Every block, from the first to the last."),
            Section("masks", "How alike the masks are", [agreement_table(found)] if len(names) > 1 else []),
            Section("terms", "What the words mean", [Pairs(TERMS)]),
        ],
        looks=styles,
    )


def write_comparison(found: Comparison, path: Path) -> Path:
    """Write the page of a comparison as HTML, or as Markdown where the name of the file ends in ``.md``."""
    return write_document(comparison_document(found, found.model, "on batches given in Python"), path)


def notebook_table(found: Comparison) -> str:
    """What a notebook shows: the table, with the best of each sparsity in bold."""
    made = comparison_table(found)
    head = [f"{column.title} ({column.over})" if column.over else column.title for column in made.columns]
    bold = Markup("<b>{}</b>").format
    rows = [[bold(cell.text) if cell.look == "best" else cell.text for cell in row.cells] for row in made.rows]
    return html_table(repr(found), head, rows, "errors of blocks: less is better; answers that stay: more is better")


def comparison_table(found: Comparison) -> Table:
    """Return the table: a row for each method and sparsity."""
    groups = list(dict.fromkeys(g for one in found.pruners for f in one.fidelity.values() for g in f.groups))
    kinds = list(dict.fromkeys(k for one in found.pruners for f in one.fidelity.values() for k in f.answers))
    heads = [Column("zeros"), Column("method")]
    heads += [Column(group, "error of blocks", class_="number") for group in groups]
    heads += [Column(kind, "answers that stay", class_="number") for kind in kinds]
    heads += [Column("seconds", "cost", class_="number"), Column("memory", "cost", class_="number")]
    styles = looks([one.method for one in found.pruners])
    rows = []
    for sparsity in found.sparsities:
        here = [one for one in found.pruners if sparsity in one.fidelity]
        least = {g: min(one.fidelity[sparsity].groups.get(g, float("inf")) for one in here) for g in groups}
        most = {k: max(one.fidelity[sparsity].answers.get(k, -1.0) for one in here) for k in kinds}
        for one in here:
            found_here = one.fidelity[sparsity]
            cells = [TableCell(nominal(sparsity), sparsity), TableCell(one.method, one.method, icon=styles[one.method])]
            for group in groups:
                error = found_here.groups.get(group)
                text = "-" if error is None else f"{error:.4f}"
                cells.append(TableCell(text, error, look="best" if error == least[group] else None))
            for kind in kinds:
                stay = found_here.answers.get(kind)
                cells.append(_share(stay, best=stay == most[kind]))
            cells += [TableCell(number(one.seconds, 1), one.seconds), TableCell(size(one.peak_memory), one.peak_memory)]
            rows.append(Row(cells, name=one.method))
    return Table(heads, rows, "Errors of blocks and answers that stay, by method and share of zeros")


def agreement_table(found: Comparison) -> Table:
    """Return the overlap of every two masks."""
    pairs = list(dict.fromkeys(pair for of in found.agreement.values() for pair in of))
    heads = [Column("method"), Column("and"), *(Column(nominal(s), class_="number") for s in found.sparsities)]
    rows = [
        Row(
            [
                TableCell(a, a),
                TableCell(b, b),
                *(_share(found.agreement[sparsity].get((a, b))) for sparsity in found.sparsities),
            ]
        )
        for a, b in pairs
    ]
    return Table(heads, rows, "Overlap of the weights that two methods keep")


def comparison_values(found: Comparison) -> dict[str, Any]:
    """Return all numbers of a comparison as plain values."""
    return {
        "model": found.model,
        "sparsities": list(found.sparsities),
        "calibration_seconds": found.calibration,
        "methods": [
            {
                "method": one.method,
                "seconds": one.seconds,
                "peak_memory": one.peak_memory,
                "settings": dict(one.result.settings),
                "at": [
                    {
                        "sparsity": sparsity,
                        "achieved": one.result.masks[sparsity].sparsity,
                        "zeros": one.result.masks[sparsity].group_sparsities(),
                        "blocks": dict(fidelity.blocks),
                        "groups": dict(fidelity.groups),
                        "answers": dict(fidelity.answers),
                        "compared": dict(fidelity.compared),
                    }
                    for sparsity, fidelity in one.fidelity.items()
                ],
            }
            for one in found.pruners
        ],
        "overlap": [
            {"sparsity": sparsity, "methods": list(pair), "overlap": overlap}
            for sparsity, of in found.agreement.items()
            for pair, overlap in of.items()
        ],
    }


def _share(value: float | None, *, best: bool = False) -> TableCell:
    return TableCell("-" if value is None else percent(value, 1), value, look="best" if best else None)


def _headline(found: Comparison) -> str:
    said = []
    for sparsity in found.sparsities:
        loyal = {one.method: f.loyalty for one in found.pruners if (f := one.fidelity.get(sparsity))}
        known = {name: value for name, value in loyal.items() if value is not None}
        if known:
            best = max(known, key=lambda name: known[name])
            said.append(f"at {nominal(sparsity)} zeros {best} keeps {percent(known[best])}")
    if said:
        return f"Of the dense model's answers, {listed(said)}."
    return f"{count(len(found.pruners), 'method')} at {count(len(found.sparsities), 'sparsity', 'sparsities')}."


def _error_chart(found: Comparison, sparsity: float, styles: Mapping[str, Look]) -> Drawing:
    series, most, last = [], 0.0, 1
    for one in found.pruners:
        if sparsity not in one.fidelity:
            continue
        errors = one.fidelity[sparsity].blocks
        points = [
            Point(at, error, error, error, f"{one.method}, {block}: {number(error, 4)}")
            for at, (block, error) in enumerate(errors.items(), 1)
        ]
        series.append(Series(one.method, styles[one.method], tuple(points)))
        most, last = max([most, *errors.values()]), max(last, len(errors))
    ticks = tuple((float(at), str(at)) for at in sorted({1, (last + 1) // 2, last}))
    x_axis = Axis("block", 1 - 0.04 * last, last + 0.04 * last, ticks)
    title = f"Error of every block at {nominal(sparsity)} zeros"
    return Drawing(chart(title, series, x_axis=x_axis, y_axis=round_axis("", 0, most or 1.0)), title)
