"""The section of the page about where the zeros went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.report.bars import layer_bars
from multiflow.report.bench.layers import EVEN, Spread, collapsed, groups, spreads, uneven
from multiflow.report.bench.parts import MOST_TINT, in_colours, in_tier, names_column
from multiflow.report.bench.values import Bench, seeds_said, span
from multiflow.report.html import Column, Content, Markup, nominal, number, percent, section, table, tag
from multiflow.report.palette import Look
from multiflow.report.svg import name
from multiflow.report.values import COLLAPSED
from multiflow.report.words import count


def zeros(bench: Bench, styles: Mapping[str, Look]) -> Markup | None:
    """Return the section: what collapsed, a table of groups, bars of the layers."""
    found = spreads(bench)
    if not found:
        return None
    made = []
    for model in dict.fromkeys(spread.model for spread in found):
        here = [spread for spread in found if spread.model == model]
        loud = [spread for spread in here if spread.pruner in bench.loud]
        quiet = [spread for spread in here if spread.pruner not in bench.loud]
        folded = None
        if quiet:
            pruners = count(len({spread.pruner for spread in quiet}), "other pruner")
            folded = tag("details", tag("summary", f"layers of {pruners} on {model}"), _bars(quiet, styles))
        made.append((tag("h3", model), _table(bench, here, styles), _bars(loud, styles), folded))
    lead = (
        "Did some part of the model lose more than its share? The table has the share of zeros of each group of "
        "layers, amber the more a group lost beyond what was asked for; below it is one bar a layer, dashed what was "
        "asked for, solid what each group got. ",
        tag("span", f"Red with a flag is collapsed: at least {percent(COLLAPSED)} zeros.", class_="gone"),
    )
    return section("Where the zeros went", _verdict(found, styles), _uneven(found, styles), made, id="zeros", lead=lead)


def _verdict(found: Sequence[Spread], styles: Mapping[str, Look]) -> Markup:
    gone = collapsed(found)
    if not gone:
        text = f"every layer keeps more than {percent(1 - COLLAPSED)} of its weights."
        return tag("p", tag("b", "Nothing collapsed: "), text, class_="verdict good")
    items = [tag("li", name(pruner, styles[pruner]), f" on {model} {what}") for model, pruner, what in gone]
    return tag("div", tag("b", "Collapsed"), tag("ul", items), class_="verdict bad")


def _uneven(found: Sequence[Spread], styles: Mapping[str, Look]) -> Markup:
    return tag("ul", [tag("li", in_colours(text, styles)) for text in uneven(found)], class_="said-list")


def _table(bench: Bench, found: Sequence[Spread], styles: Mapping[str, Look]) -> Markup:
    by_pruner: dict[str, dict[float, Spread]] = {}
    for spread in found:
        by_pruner.setdefault(spread.pruner, {})[spread.sparsity] = spread

    def share(sparsity: float, group: str) -> Column:
        def value(pruner: str) -> float | None:
            spread = by_pruner[pruner].get(sparsity)
            return spread.groups.get(group) if spread else None

        def show(pruner: str) -> Content:
            got = value(pruner)
            if got is None:
                return None
            lean = (got - sparsity) / (1 - sparsity)
            tinted = got - sparsity > EVEN / 2
            look = "lean flat gone" if got >= COLLAPSED else "lean down" if tinted else "lean flat"
            ground = f"--lean:{number(MOST_TINT * lean, 0)}%" if tinted else None
            return tag("span", percent(got, 1), class_=look, style=ground)

        def tip(pruner: str) -> str | None:
            spread = by_pruner[pruner].get(sparsity)
            layers = f"{len(spread.gone_layers)} of {len(spread.layout)} layers collapsed" if spread else ""
            return f"{pruner}, {nominal(sparsity)} zeros, {seeds_said(spread.seeds)}: {layers}" if spread else None

        over = f"{nominal(sparsity)} zeros asked for"
        return Column(group, show, value, class_="number", over=over, tip=tip)

    sparsities = sorted({spread.sparsity for spread in found})

    def seeds(pruner: str) -> list[int]:
        return [len(spread.seeds) for spread in by_pruner[pruner].values()]

    columns = (
        names_column(styles, str),
        Column("seeds", lambda p: span(seeds(p)), lambda p: max(seeds(p)), "prunings of the means", "number"),
        *(share(sparsity, group) for sparsity in sparsities for group in groups(found)),
    )
    caption = f"{found[0].model}: share of zeros in each group of layers, mean over seeds"
    return table(columns, list(by_pruner), caption=caption, attributes=lambda pruner: in_tier(bench, pruner))


def _bars(found: Sequence[Spread], styles: Mapping[str, Look]) -> list[Markup]:
    return [
        tag(
            "div",
            tag("h4", name(pruner, styles[pruner])),
            tag("div", [_panel(spread, styles) for spread in found if spread.pruner == pruner], class_="panels"),
            class_="method",
        )
        for pruner in dict.fromkeys(spread.pruner for spread in found)
    ]


def _panel(spread: Spread, styles: Mapping[str, Look]) -> Markup:
    title = f"{spread.pruner} on {spread.model} at {nominal(spread.sparsity)}: share of zeros in each layer"
    bars = layer_bars(title, spread.layout, spread.layers, spread.groups, spread.sparsity, styles[spread.pruner])
    gone = len(spread.gone_layers)
    note = tag("span", f"{count(gone, 'layer')} collapsed", class_="gone") if gone else None
    return tag("figure", tag("figcaption", tag("b", nominal(spread.sparsity)), " ", note), bars)
