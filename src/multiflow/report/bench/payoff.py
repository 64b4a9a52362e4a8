"""What the zeros of a grid buy: quality against bytes, and against milliseconds where its records carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.cost import Kept, kept
from multiflow.report.bench.quality import pruner_row
from multiflow.report.bench.results import Bench
from multiflow.report.charts import Look, Point, Reference, Series, chart, round_axis
from multiflow.report.document import Block, Drawing, Drawings, Paragraph, Section
from multiflow.report.tables import Column, Table, TableCell
from multiflow.report.text import NBSP, nominal, number

LEAD = (
    "Is it smaller, is it faster? Packed: the prunable weights as a bit for each and bfloat16 for those that are kept, "
    "uncompressed, computed from the masks. Memory and milliseconds were measured with the cells, a forward of 8 "
    "samples in the sparse runtime (mf.sparse_runtime) beside the dense model in float32, in seconds of the processor, "
    "the median over cells; "
)
CARRIED, LACKING = (
    "one that is missing was not measured.",
    "these records carry none: they are of an older version, of a GPU, or of a machine without a C++ compiler.",
)


@dataclass(frozen=True)
class Payoff:
    """What one pruner's masks of one sparsity buy on one model."""

    pruner: str
    sparsity: float
    packed: float | None  # bytes of the prunable weights, mean over seeds; None where the masks' records are missing
    share: float | None  # of these weights dense in bfloat16
    memory: float | None  # bytes of all weights in the sparse runtime, median over cells
    milliseconds: float | None  # of a forward, median over cells
    faster: float | None  # than dense in float32, the median of ratios
    kept: Kept | None  # of the dense score


def payoffs(bench: Bench, model: str) -> list[Payoff]:
    """Return one entry a pruner and sparsity of a model, in the order of the grid."""
    shares = {sparsity: kept(bench, model, sparsity) for sparsity in bench.sparsities(model)}
    found = []
    for pruner in (name for name in bench.pruners if name != DENSE):
        for sparsity, of in shares.items():
            key = (model, pruner, sparsity)
            cells = [cell for cell in bench.cells if (cell.model, cell.pruner, cell.sparsity) == key]
            masks = [p for p in bench.prunings if (p.model, p.pruner) == key[:2] and sparsity in p.zeros]
            if cells or masks:
                found.append(_payoff(pruner, sparsity, cells, masks, of.get(pruner)))
    return found


def _payoff(
    pruner: str, sparsity: float, cells: Sequence[Cell], masks: Sequence[Pruning], quality: Kept | None
) -> Payoff:
    sizes = [sum(size for *_, size in one.layers) for one in masks]
    packed = [size / 8 + 2 * (size - sum(one.zeros[sparsity])) for one, size in zip(masks, sizes, strict=True)]
    measured = [cell.cost for cell in cells if cell.cost.get("forward") and cell.cost.get("dense_forward")]
    return Payoff(
        pruner,
        sparsity,
        fmean(packed) if packed else None,
        fmean(p / (2 * size) for p, size in zip(packed, sizes, strict=True)) if packed else None,
        median(cost["memory"] for cost in measured) if measured else None,
        1000 * median(cost["forward"] for cost in measured) if measured else None,
        median(cost["dense_forward"] / cost["forward"] for cost in measured) if measured else None,
        quality,
    )


def payoff_section(bench: Bench, styles: Mapping[str, Look]) -> Section | None:
    """Return the section, a table and charts a model; None where no masks are known."""
    charts: list[Drawing] = []
    tables: list[Block] = []
    any_measured = False
    for model in bench.models:
        found = payoffs(bench, model)
        if not found:
            continue
        any_measured |= any(one.faster is not None for one in found)
        charts += [made for unit in ("MB", "ms") if (made := _payoff_chart(bench, model, found, unit, styles))]
        tables += [Paragraph(model, "h3"), _payoff_table(bench, model, found, styles)]
    if not tables:
        return None
    blocks = [Drawings(charts), *tables] if charts else tables
    return Section("payoff", "What the zeros buy", blocks, LEAD + (CARRIED if any_measured else LACKING))


def _payoff_table(bench: Bench, model: str, found: Sequence[Payoff], styles: Mapping[str, Look]) -> Table:
    head = [
        Column("pruner", class_="first"),
        Column("zeros", class_="number"),
        Column("share of the dense score", class_="number"),
        Column("packed MB", hint="the prunable weights", class_="number"),
        Column("of dense bf16", class_="number"),
        Column("memory MB", hint="all weights in the sparse runtime", class_="number"),
        Column("ms", hint="a forward of 8 samples", class_="number"),
        Column("times faster", hint="than dense in float32", class_="number"),
    ]
    rows = []
    for one in found:
        quality = TableCell(tip="not all tasks have figures")
        if one.kept is not None:
            quality = TableCell(f"{one.kept.share:.1f}{NBSP}%", one.kept.share, seeds=one.kept.few)
        cells = [
            TableCell(nominal(one.sparsity), one.sparsity),
            quality,
            _amount(one.packed, 1e-6, "{}", "the records of these masks are missing"),
            _amount(one.share, 1.0, "{:.3f}", "the records of these masks are missing"),
            _amount(one.memory, 1e-6, "{}", "not measured"),
            _amount(one.milliseconds, 1.0, "{}", "not measured"),
            _amount(one.faster, 1.0, "{:.2f}", "not measured"),
        ]
        rows.append(pruner_row(bench, one.pruner, cells, styles))
    return Table(head, rows, f"{model}: quality, bytes and milliseconds")


def _amount(value: float | None, unit: float, form: str, why: str) -> TableCell:
    if value is None:
        return TableCell(tip=why)
    return TableCell(number(value * unit) if form == "{}" else form.format(value * unit), value)


def _payoff_chart(
    bench: Bench, model: str, found: Sequence[Payoff], unit: str, styles: Mapping[str, Look]
) -> Drawing | None:
    series = []
    for pruner in dict.fromkeys(one.pruner for one in found):
        points = []
        for one in found:
            x = None if one.packed is None else one.packed / 1e6
            x = x if unit == "MB" else one.milliseconds
            if one.pruner == pruner and one.kept is not None and x is not None:
                share = one.kept.share
                text = f"{pruner}, {nominal(one.sparsity)} zeros: {share:.1f} % of dense at {number(x)} {unit}"
                points.append(Point(x, share, share, share, text, hollow=bool(one.kept.few)))
        if points:
            in_order = tuple(sorted(points, key=lambda point: point.x))
            series.append(Series(pruner, styles[pruner], in_order, pruner not in bench.loud))
    if not series:
        return None
    all_x, all_y = ([getattr(point, axis) for line in series for point in line.points] for axis in "xy")
    title = f"{model}: share of the dense score against {'packed megabytes' if unit == 'MB' else 'milliseconds'}"
    x_axis, y_axis = round_axis(unit, 0, max(all_x)), round_axis("", min(all_y), max(100.0, *all_y))
    return Drawing(chart(title, series, (Reference("dense", 100.0),), x_axis=x_axis, y_axis=y_axis), title)
