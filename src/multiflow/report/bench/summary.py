"""The first section: who is ahead over all, how sure that is, and who leads where."""

from __future__ import annotations

from collections.abc import Mapping

from multiflow.bench.records import DENSE
from multiflow.report.bench.quality import leads_cell, leads_column, pruner_row
from multiflow.report.bench.results import Bench, GridPlace
from multiflow.report.bench.words import (
    difference_text,
    duel,
    entry_text,
    leaders,
    losses,
    overall_text,
    place_text,
    seed_counts,
    standings,
    verdicts,
)
from multiflow.report.charts import Look, forest
from multiflow.report.document import Block, Drawing, Drawings, Items, Mark, Paragraph, Section
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import nominal, span


def summary(bench: Bench, looks: Mapping[str, Look]) -> Section | None:
    if not bench.places:
        return None
    first = bench.first or ""
    behind = [f"{place_text(place)}: {name} {difference_text(d)}" for place, name, d in losses(bench)]
    lead = (
        "From the pruner that leads most often down. To lead is to be the best of a place or within noise of it: the "
        f"95 % interval of the difference includes zero. Against {first}: places won beyond noise / within noise / "
        "lost. The share of the dense score is the mean over all models and tasks; ",
        Mark("bold", "best"),
        " is the best, ",
        Mark("marked like this", "close"),
        " what is within noise of it; a small ",
        Mark("n", "few"),
        " the number of seeds, where others have more.",
    )
    blocks: list[Block] = [
        _standings(bench, looks, first),
        *_forests(bench, looks, first),
        Paragraph("In words", "h3"),
        Items(verdicts(bench)),
        Paragraph("Who leads where", "h3", page_only=True),
        Paragraph(MAP, "lead", page_only=True),
        _map(bench, looks),
        Items([f"{place_text(place)}: {text}." for place, text in leaders(bench)], "place by place, in words"),
        Items(behind, f"where {first} is behind another pruner beyond noise")
        if behind
        else Paragraph(f"{first} is nowhere behind another pruner beyond noise.", "lead"),
    ]
    return Section("summary", "Summary", blocks, lead)


def _standings(bench: Bench, looks: Mapping[str, Look], first: str) -> Table:
    hint = f"places won beyond noise / within noise / lost beyond noise against {first}, on the seeds both have"
    head = [Column("pruner", class_="first"), Column("seeds", class_="number"), leads_column()]
    head.append(Column(f"against {first}", hint=hint, class_="number"))
    over = "share of the dense score at"
    head += [Column(nominal(s), over, class_="number figure", after="seeds") for s in bench.overall_sparsities]
    rows = []
    for one in standings(bench):
        seeds, against = seed_counts(bench, one.pruner), duel(bench, one.pruner, first)
        cells = [TableCell(span(seeds), max(seeds, default=0)), leads_cell(one), TableCell(str(against), against.lean)]
        cells += [_share(bench, sparsity, one.pruner) for sparsity in bench.overall_sparsities]
        rows.append(pruner_row(bench, one.pruner, cells, looks))
    caption = f"The standings of the pruners; won / level / lost against {first}; share of the dense score"
    return Table(head, rows, caption, "standings-table")


def _share(bench: Bench, sparsity: float, pruner: str) -> TableCell:
    one = bench.overall.get((sparsity, pruner))
    if one is None:
        return TableCell(tip=f"{pruner} lacks a model or task at {nominal(sparsity)}")
    text = f"{one.share:.1f}\N{NO-BREAK SPACE}%"
    return TableCell(text, one.share, one.look, seeds=bench.fewer_seeds(one), tip=overall_text(bench, one))


def _forests(bench: Bench, looks: Mapping[str, Look], first: str) -> list[Block]:
    made = []
    for sparsity in bench.overall_sparsities:
        pairs = bench.overall_differences.items()
        found = {name: d for (s, name, other), d in pairs if (s, other) == (sparsity, first)}
        if found:
            title = f"{nominal(sparsity)} zeros"
            tips = {name: overall_text(bench, bench.overall[sparsity, name]) for name in found}
            made.append(Drawing(forest(title, found, looks, first, tips), title))
    lead = (
        f"Share of the dense score minus that of {first}, in points, mean over all models and tasks, with its 95 % "
        f"interval. Right of the line is better than {first}; an interval that crosses it is within noise. Hollow "
        "marks rest on one seed, whose intervals are too narrow; an arrow points to what is off the scale."
    )
    heading = Paragraph(f"How sure: against {first}, over everything", "h3", page_only=True)
    return [heading, Paragraph(lead, "lead", page_only=True), Drawings(made, "forests")] if made else []


MAP = (
    "Each column is a place. ",
    Mark("Filled", "spot best"),
    " is the best pruner there (",
    Mark("framed", "spot best alone"),
    ": over fewer seeds than others), ",
    Mark("tinted", "spot near"),
    " what is within noise of it. A small ",
    Mark("n", "few"),
    " is the number of seeds, where others have more; point at a number for its figures, seeds and intervals.",
)


def _map(bench: Bench, looks: Mapping[str, Look]) -> Table:
    head = [Column("pruner", class_="first")]
    for place in bench.places:
        title, over = f"{100 * place.sparsity:.4g}", f"{place.model}\n{place.task}"
        head.append(Column(title, over, place_text(place), "number"))
    rows: list[Row] = []
    for one in standings(bench):
        cells = [_spot(bench, place, one.pruner) for place in bench.places]
        rows.append(pruner_row(bench, one.pruner, cells, looks))
    caption = (
        "Score in percent of the dense one (each mean over its own seeds), at each model, task and percent of zeros"
    )
    return Table(head, rows, caption, "map-table", page_only=True)


def _spot(bench: Bench, place: GridPlace, pruner: str) -> TableCell:
    entry, dense = bench.entries.get((place, pruner)), bench.entries.get((place.dense, DENSE))
    if entry is None:
        return TableCell()
    share = 100 * entry.mean / dense.mean if dense and dense.mean else entry.mean
    seeds = bench.few(entry)
    look = f"spot best{' alone' if seeds else ''}" if entry.best else "spot near" if entry.close else "spot"
    return TableCell(f"{share:.0f}", share, look, seeds=seeds, tip=entry_text(entry, bench))
