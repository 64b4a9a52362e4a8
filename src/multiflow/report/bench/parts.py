"""What sections of the page share: columns, marks, names in colour, lists that fold, and the choice of a tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from multiflow.bench.records import DENSE
from multiflow.report.bench.values import Bench
from multiflow.report.bench.words import Standing
from multiflow.report.html import Attribute, Column, Markup, coloured, tag
from multiflow.report.palette import Look
from multiflow.report.svg import name

MOST_TINT = 30
"""Percent of colour in the ground of a cell; text on more of it is hard to read."""


def names_column(styles: Mapping[str, Look], of: Callable[..., str] = lambda row: row.pruner) -> Column:
    """Return the first column of a table of pruners; ``of``: row -> its pruner."""
    return Column("pruner", lambda row: name(of(row), styles[of(row)]), of, class_="first")


def leads_column() -> Column:
    """Return the column of how often a pruner leads."""

    def show(row: Standing) -> str:
        return f"{row.leads} of {row.places}"

    def key(row: Standing) -> float | None:
        return row.leads / row.places if row.places else None

    return Column("leads", show, key, "places where it is the best or within noise of the best", "number")


def few_mark(seeds: int | None) -> Markup | None:
    """Return the mark of a mean over fewer seeds than others of its column: their number."""
    return tag("sup", str(seeds), class_="few") if seeds else None


def in_colours(text: str, styles: Mapping[str, Look]) -> Markup:
    """Return a text with the names of the pruners in their colours."""
    return coloured(text, {pruner: look.colour for pruner, look in styles.items() if pruner != DENSE})


def folded(items: Sequence[Markup], what: str, *, open: bool = False) -> Markup | None:
    """Return a list under a line that opens it; None of no items."""
    if not items:
        return None
    inside = tag("ul", [tag("li", item) for item in items], class_="said-list")
    return tag("details", tag("summary", f"{what}: {len(items)}"), inside, open=open)


def tier_filter(bench: Bench) -> Markup | None:
    """Return the buttons that choose a tier in all tables; None where there is nothing to choose."""
    used = {tier for pruner, tiers in bench.tiers_of.items() if pruner != DENSE for tier in tiers}
    if len(used) < 2:
        return None
    choices = [("", "all"), *((_key(bench, tier), f"tier {tier}") for tier in bench.tiers if tier in used)]
    buttons = [
        tag("button", text, type="button", data_choose=key, aria_pressed="false" if key else "true")
        for key, text in choices
    ]
    label = "Pruners in all tables"
    return tag("div", tag("span", f"{label}:"), buttons, class_="filter", role="group", aria_label=label, hidden=True)


def in_tier(bench: Bench, pruner: str) -> Mapping[str, Attribute]:
    """Return the attributes of a row of a pruner; the dense baseline stays whatever tier is chosen."""
    keys = None if pruner == DENSE else " ".join(_key(bench, tier) for tier in bench.tiers_of[pruner])
    return {"data_tiers": keys, "data_name": pruner}


def _key(bench: Bench, tier: str) -> str:
    """Names may hold blanks: a tier is known by its place in the grid."""
    return str(bench.tiers.index(tier) + 1)
