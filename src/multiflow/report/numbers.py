"""The table of all numbers: one row a model."""

from __future__ import annotations

from collections.abc import Mapping

from multiflow.report.html import Column, Content, Markup, number, percent, section, size, table, tag
from multiflow.report.palette import DENSE, Look
from multiflow.report.svg import name
from multiflow.report.values import COLLAPSED, Demo, Pruned


def numbers(demo: Demo, styles: Mapping[str, Look]) -> Markup:
    """Return the section with the table; in it None stands for the dense model, which comes first."""
    leaders = {sparsity: demo.leaders(sparsity) for sparsity in demo.sparsities}

    def recall(metric: str, query: str) -> Column:
        def value(row: Pruned | None) -> float:
            return getattr(row.quality if row else demo.dense, metric)

        def show(row: Pruned | None) -> Content:
            strong = row is not None and row.method in leaders[row.sparsity]
            meter = tag("span", class_="meter", style=f"scale:{number(value(row) / 100, 4)} 1", aria_hidden="true")
            return meter, tag("b" if strong else "span", f"{value(row):.1f}")

        title = f"{metric[:2].upper()}@1"
        return Column(title, show, value, f"percent of the searches that a {query} ends well at once", "number metered")

    def zeros(group: str) -> Column:
        def value(row: Pruned | None) -> float:
            return row.groups[group] if row else 0.0

        def show(row: Pruned | None) -> Content:
            return tag("span", percent(value(row), 1), class_="gone" if value(row) >= COLLAPSED else None)

        return Column(group, show, value, f"share of zeros among the {group} weights", "number")

    columns = (
        Column(
            "method",
            lambda row: name(row.method, styles[row.method]) if row else name("dense", DENSE),
            lambda row: row.method if row else "dense",
            class_="first",
        ),
        Column(
            "zeros",
            lambda row: percent(row.achieved if row else 0.0, 1),
            lambda row: row.achieved if row else 0.0,
            "share of zeros among all prunable weights",
            "number",
        ),
        recall("tr1", "picture in search of its caption"),
        recall("ir1", "caption in search of its picture"),
        *map(zeros, demo.groups),
        Column(
            "seconds",
            lambda row: f"{row.prune_seconds:.2f}" if row else "",
            lambda row: row.prune_seconds if row else 0.0,
            "to the masks of all sparsities of the method, calibration included where it needs any",
            "number",
        ),
        Column(
            "mask file",
            lambda row: size(row.mask_bytes) if row else "",
            lambda row: row.mask_bytes if row else 0,
            "one bit a weight, and a header",
            "number",
        ),
    )
    rows = (None, *sorted(demo.rows, key=lambda row: row.sparsity))
    caption = f"Recall@1 in percent of {demo.scenes} searches, and the share of zeros in each modality"
    lead = "One row a model; the headings sort. Bold is the best of each sparsity, and what is too close to it to call."
    return section("All numbers", table(columns, rows, caption=caption), id="numbers", lead=lead)
