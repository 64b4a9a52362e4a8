"""Quality against bytes and against milliseconds: the block that reports of pruned models share."""

from __future__ import annotations

from collections.abc import Sequence

from multiflow.formats.worth import DENSE, SAMPLES, SPARSE, FormWorth
from multiflow.report.charts import DENSE_LOOK, Point, Series, chart, looks, round_axis
from multiflow.report.document import Block, Drawing, Drawings, Section
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import nominal, number

LEAD = (
    f"Measured on this machine while the report was made: a forward of {SAMPLES} samples, forms in turns, the median. "
    "MB: the weights in memory. The sparse runtime is mf.sparse_runtime; int8 was not evaluated. Other machines "
    "differ, and 'multiflow speed' measures all forms at length."
)


def worth_sections(worth: Sequence[FormWorth], metric: str) -> list[Section]:
    """Return the section, one table and two charts; none where nothing was measured.

    Args:
        worth: the forms of one model.
        metric: what their quality is.
    """
    if not worth:
        return []
    base = next(one for one in worth if one.form == DENSE)
    head = [
        Column("form"),
        Column("zeros", class_="number"),
        Column(metric, class_="number"),
        Column("MB", hint="weights in memory", class_="number"),
        Column(f"ms for {SAMPLES}", hint="a forward, the median", class_="number"),
        Column("times faster", hint="than dense in float32", class_="number"),
    ]
    rows = [_row(one, base) for one in worth]
    blocks: list[Block] = [Table(head, rows, f"{metric}, bytes and milliseconds of each form")]
    if sum(one.quality is not None for one in worth) > 1:
        blocks.append(Drawings([_chart(worth, metric, "MB"), _chart(worth, metric, "ms")], "pair"))
    return [Section("worth", "What the zeros buy", blocks, LEAD)]


def _name(one: FormWorth) -> str:
    return f"{one.form} ({one.by})" if one.by else one.form


def _row(one: FormWorth, base: FormWorth) -> Row:
    quality = "-" if one.quality is None else f"{one.quality:.1f}"
    times, noise = base.seconds / one.seconds, one.spread + base.spread
    cells = [
        TableCell(_name(one), one.form),
        TableCell(nominal(one.sparsity), one.sparsity),
        TableCell(quality, one.quality),
        TableCell(number(one.memory / 1e6), one.memory),
        TableCell(number(1000 * one.seconds), one.seconds),
        TableCell(f"{times:.2f}", times, look="best" if times > 1 + noise else None),
    ]
    return Row(cells, class_="dense" if one is base else None)


def _chart(worth: Sequence[FormWorth], metric: str, unit: str) -> Drawing:
    def point(one: FormWorth, quality: float) -> Point:
        cost = one.memory / 1e6 if unit == "MB" else 1000 * one.seconds
        text = f"{_name(one)}, {nominal(one.sparsity)} zeros: {metric} {quality:.1f} at {number(cost)} {unit}"
        return Point(cost, quality, quality, quality, text)

    styles = {DENSE: DENSE_LOOK, **looks([SPARSE])}
    series = []
    for form, look in styles.items():
        points = [point(one, one.quality) for one in worth if one.form == form and one.quality is not None]
        if points:
            series.append(Series(form, look, tuple(sorted(points, key=lambda one: one.x))))
    all_x, all_y = ([getattr(one, axis) for of in series for one in of.points] for axis in "xy")
    title = f"{metric} against {'megabytes' if unit == 'MB' else 'milliseconds'}"
    x_axis, y_axis = round_axis(unit, 0, max(all_x)), round_axis("", min(all_y), max(100.0, max(all_y)))
    return Drawing(chart(title, series, x_axis=x_axis, y_axis=y_axis), title)
