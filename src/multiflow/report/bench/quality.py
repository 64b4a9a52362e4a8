"""Quality: the tables of all figures, curves against sparsity, and who beats whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.results import Bench, GridPlace, PlaceEntry
from multiflow.report.bench.words import Standing, duel, entry_text, standings
from multiflow.report.charts import Axis, Look, Point, Reference, Series, chart, round_axis, shares
from multiflow.report.document import Block, Drawing, Drawings, Mark, Paragraph, Section
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import nominal, number

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
        "Hollow marks are means over fewer seeds than others. Grey lines are the other pruners: point at one to see "
        "which. An axis may begin above 0."
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
