"""Quality: the summary, the tables of all figures, curves against sparsity, and who beats whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.results import Bench, GridPlace, PlaceEntry
from multiflow.report.bench.words import (
    Standing,
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
from multiflow.report.charts import Axis, Look, Point, Reference, Series, chart, forest, round_axis, shares
from multiflow.report.document import Block, Drawing, Drawings, Items, Mark, Paragraph, Section
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import nominal, number, span

MOST_TINT = 30
"""Percent of colour in the ground of a cell; text on more of it is hard to read."""
STATES = {"failed": ("failed", "the cell failed; the error is said on top"), "pending": ("·", "not computed yet")}
FEW = (" A small ", Mark("n", "few"), " is the number of seeds of a mean over fewer than others of its column.")


def figures(bench: Bench, looks: Mapping[str, Look]) -> Section | None:
    lead = (
        "Mean ± standard deviation over seeds on the test data. ",
        Mark("Bold", "best"),
        " is the best of a column, ",
        Mark("marked like this", "close"),
        " what is within noise of it.",
        *FEW,
    )
    blocks: list[Block] = []
    for model in bench.models:
        if places := columns(bench, model):
            tracks = ", ".join(dict.fromkeys(f"{p.task} in {p.metric}" for p in places))
            table = figures_table(bench, model, f"{model}: {tracks}", looks, tiers=len(bench.tiers) > 1)
            blocks += [Paragraph(model, "h3"), table]
    return Section("figures", "All figures", blocks, lead) if blocks else None


def columns(bench: Bench, model: str) -> list[GridPlace]:
    """Return the places of a model; where it has but dense figures yet, those of the dense baseline."""
    return bench.places_of(model) or bench.tracks(model)


def figures_table(
    bench: Bench, model: str, caption: str, looks: Mapping[str, Look] | None = None, *, tiers: bool = False
) -> Table:
    """Return the table of a model: pruners by tasks and sparsities, the dense baseline first.

    Args:
        bench: the benchmark.
        model: whose table it is.
        caption: of the table.
        looks: of the pruners; None leaves marks and heading of their column out, as LaTeX wants it.
        tiers: whether to say in which tiers each pruner is.
    """
    places, names = columns(bench, model), {cell.pruner for cell in bench.expected if cell.model == model}
    head = [Column("pruner" if looks else "", class_="first"), *([Column("tier", class_="tier")] if tiers else [])]
    head += [_figure_column(place) for place in places]
    rows = []
    for pruner in [pruner for pruner in bench.pruners if pruner in names]:
        said = "" if pruner == DENSE else ", ".join(bench.tiers_of[pruner])
        cells = [TableCell(said, said or None)] * tiers + [_figure(bench, place, pruner) for place in places]
        rows.append(pruner_row(bench, pruner, cells, looks))
    return Table(head, rows, caption)


def pruner_row(bench: Bench, pruner: str, cells: Sequence[TableCell], looks: Mapping[str, Look] | None) -> Row:
    """Return a row of a pruner, with its name first; the dense baseline stays whatever tier is chosen."""
    name = TableCell(pruner, pruner, icon=looks[pruner] if looks else None)
    return Row([name, *cells], pruner, bench.tier_keys(pruner), "dense" if pruner == DENSE else None)


def _figure_column(place: GridPlace) -> Column:
    over = f"{place.task} ({place.metric})"
    return Column(nominal(place.sparsity), over, class_="number figure", after="rest")


def _figure(bench: Bench, place: GridPlace, pruner: str) -> TableCell:
    """The dense baseline's figure stands at every sparsity of a task."""
    entry = bench.entries.get((place.dense if pruner == DENSE else place, pruner))
    if entry is None:
        state = _state(bench, place, pruner)
        text, tip = STATES.get(state, ("", None))
        return TableCell(text, look=state or None, tip=tip)
    std = "" if entry.std is None else f"±{entry.std:.1f}"
    seeds, tip = bench.few(entry), entry_text(entry, bench)
    return TableCell(f"{entry.mean:.1f}", entry.mean, entry.look, std, seeds, tip)


def _state(bench: Bench, place: GridPlace, pruner: str) -> str:
    """Why there is no figure: ``failed``, ``pending``, or nothing where the grid has no such cell."""

    def here(cell: Cell) -> bool:
        same = (cell.model, cell.task, cell.pruner) == (place.model, place.task, pruner)
        return same and (pruner == DENSE or cell.sparsity == place.sparsity)

    return "failed" if any(map(here, bench.failed)) else "pending" if any(map(here, bench.missing)) else ""


def curves(bench: Bench, looks: Mapping[str, Look]) -> Section | None:
    """Return the section of curves: quality against sparsity, a chart a model and task."""
    made = [_curves(bench, looks, track) for track in dict.fromkeys(place.dense for place in bench.places)]
    lead = (
        "How much of the dense model is left as zeros are added. Whiskers are 95 % intervals over test items and "
        "seeds; those of two pruners may overlap where their paired difference is beyond noise, which the table says. "
        "Hollow marks are means over fewer seeds than others. Thin lines are pruners of later tiers: point at one for "
        "its whiskers. An axis may begin above 0."
    )
    return Section("quality", "Quality against sparsity", [Drawings(made)], lead) if made else None


def _curves(bench: Bench, looks: Mapping[str, Look], track: GridPlace) -> Drawing:
    def point(entry: PlaceEntry) -> Point:
        text, few = entry_text(entry, bench), bool(bench.few(entry))
        return Point(entry.place.sparsity, entry.mean, entry.low, entry.high, text, hollow=few)

    places = [place for place in bench.places if place.dense == track]
    series = [
        Series(rival, looks[rival], tuple(map(point, found)), quiet=rival not in bench.loud)
        for rival in bench.rivals
        if (found := [bench.entries[place, rival] for place in places if (place, rival) in bench.entries])
    ]
    dense = bench.entries.get((track, DENSE))
    references = (Reference("dense", dense.mean),) if dense else ()
    return fitted(f"{track.model}, {track.task}: {track.metric}", series, references, shares(series, "zeros"))


def fitted(title: str, series: Sequence[Series], references: Sequence[Reference], x_axis: Axis) -> Drawing:
    lows = [p.low for line in series for p in line.points] + [r.y for r in references]
    highs = [p.high for line in series for p in line.points] + [r.y for r in references]
    y_axis = round_axis("", min(lows), max(highs))
    return Drawing(chart(title, series, references, x_axis=x_axis, y_axis=y_axis), title)


def duels(bench: Bench, looks: Mapping[str, Look]) -> Section | None:
    ranked = standings(bench)
    names = [standing.pruner for standing in ranked]
    if len(names) < 2:
        return None
    head = [Column("pruner", class_="first"), leads_column()]
    head += [Column(name, hint=f"against {name}", class_="number duel", steep=True) for name in names]
    rows = [
        pruner_row(bench, one.pruner, [leads_cell(one), *(_duel(bench, one.pruner, other) for other in names)], looks)
        for one in ranked
    ]
    caption = "Places won / lost beyond noise, row against column, over all models, tasks and sparsities both have"
    lead = (
        "How often the pruner of a row is ahead of that of a column, and how often behind. Each pair is compared at "
        "every place that both have, on the seeds that both have. The rest up to the number of places is within "
        "noise. Blue: the row is ahead; amber: behind."
    )
    return Section("duels", "Who beats whom", [Table(head, rows, caption, "duel-table")], lead)


def _duel(bench: Bench, a: str, b: str) -> TableCell:
    found = duel(bench, a, b)
    if a == b or not found.places:
        return TableCell("" if a == b else "·")
    tip = (
        f"{a} against {b}: beyond noise ahead at {found.wins} of {found.places} places, behind at {found.losses}, "
        f"within noise at {found.ties}"
    )
    lean = found.lean or 0.0
    look, tint = ("lean up" if lean > 0 else "lean down", MOST_TINT * abs(lean)) if lean else ("lean", None)
    small = f"\N{THIN SPACE}/\N{THIN SPACE}{found.losses}"
    return TableCell(str(found.wins), lean, look, small, tip=tip, tint=tint)


def leads_column() -> Column:
    return Column("leads", hint="places where it is the best or within noise of the best", class_="number")


def leads_cell(one: Standing) -> TableCell:
    return TableCell(f"{one.leads} of {one.places}", one.leads / one.places if one.places else None)


def group_tint(share: float, sparsity: float) -> float:
    """Return the colour of a group that lost more than was asked for, in percent."""
    return float(number(MOST_TINT * (share - sparsity) / (1 - sparsity), 0))


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
