"""The page of a benchmark: who is ahead and by how much, where the zeros went, what it cost, how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.cost import total_seconds
from multiflow.report.bench.doubts import Gap, cell_said, doubts, failures, gaps, incomplete
from multiflow.report.bench.making import SHARED, duration, facts, shared_settings, terms, versions
from multiflow.report.bench.page_cost import cost
from multiflow.report.bench.page_learning import learning
from multiflow.report.bench.page_quality import duels, figures, quality
from multiflow.report.bench.page_summary import summary
from multiflow.report.bench.page_zeros import zeros
from multiflow.report.bench.parts import folded, in_colours, tier_filter
from multiflow.report.bench.values import Bench
from multiflow.report.bench.words import headline, scope
from multiflow.report.html import Markup, definitions, join, page, section, tag
from multiflow.report.palette import DENSE as DENSE_LOOK
from multiflow.report.palette import Look, looks
from multiflow.report.words import count

OPEN = 8
"""Longer lists are folded."""


def bench_page(bench: Bench) -> str:
    """Return ``report.html``: one file that loads nothing from anywhere."""
    styles = {DENSE: DENSE_LOOK, **looks(name for name in bench.pruners if name != DENSE)}
    sections = [
        summary(bench, styles),
        figures(bench, styles),
        quality(bench, styles),
        duels(bench, styles),
        zeros(bench, styles),
        cost(bench, styles),
        learning(bench),
        _making(bench),
        section("How to read this", definitions(terms()), id="reading"),
    ]
    return page(
        bench.title,
        _top(bench, styles),
        _first(bench),
        _contents(sections),
        tier_filter(bench),
        sections,
        description=headline(bench),
        styles=("page.css", "bench.css"),
    )


def _top(bench: Bench, styles: Mapping[str, Look]) -> Markup:
    cells, prunings = total_seconds(bench)
    whole = len(bench.expected)
    shown = (
        (f"{len(bench.cells)} of {whole}" if len(bench.cells) < whole else str(whole), "cells have figures"),
        (str(len(bench.rivals)), f"pruners, {count(len(bench.models), 'model')}"),
        (str(len(bench.places)), "places: a model, a task and a sparsity"),
        (duration(cells + prunings), f"of pruning, fine-tuning and evaluation; {SHARED}"),
    )
    return tag(
        "header",
        tag("p", bench.title, class_="overline"),
        tag("h1", in_colours(headline(bench), styles)),
        tag("p", scope(bench), class_="lead"),
        tag("ul", [tag("li", tag("b", value), tag("span", text)) for value, text in shown], class_="facts"),
    )


def _first(bench: Bench) -> Markup | None:
    """What must be known before the figures."""
    said = incomplete(bench)
    found = doubts(bench)
    if not said and not found:
        return None
    lacking = [_gap(gap) for gap in gaps(bench)]
    failed = [_failure(error, cells) for error, cells in failures(bench)]
    return tag(
        "div",
        (tag("b", "Incomplete. "), said) if said else tag("b", "Before reading"),
        folded(lacking, "what is missing", open=len(lacking) <= OPEN),
        folded(failed, "what failed", open=len(failed) <= OPEN),
        tag("ul", [tag("li", text) for text in found]) if found else None,
        class_="verdict first-of-all mixed",
        role="note",
    )


def _gap(gap: Gap) -> Markup:
    where = f"tier {gap.tier} · {gap.model} · "
    return join((where, tag("b", gap.pruner), f": {gap.number} of {gap.of} cells, {gap.what}"))


def _failure(error: str, cells: Sequence[Cell]) -> Markup:
    shown = "; ".join(map(cell_said, cells[:4])) + (f" and {len(cells) - 4} more" if len(cells) > 4 else "")
    return join((f"{shown}: ", tag("code", error)))


def _contents(sections: list[Markup | None]) -> Markup:
    heads = [re.search(r'<h2 id="([\w-]+)-title">(.*?)</h2>', made) for made in sections if made]
    return tag("nav", [tag("a", Markup(head[2]), href=f"#{head[1]}") for head in heads if head], aria_label="contents")


def _making(bench: Bench) -> Markup:
    shared = shared_settings(bench)
    return section(
        "What was run",
        tag(
            "div",
            tag("div", definitions(facts(bench))),
            tag("div", tag("h3", "Versions"), definitions(versions(bench))),
            class_="pair",
        ),
        tag("details", tag("summary", f"settings of the cells: {len(shared)}"), definitions(shared))
        if shared
        else None,
        id="making",
    )
