"""The page of a demo: what survived, where the zeros went, what the models find, how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping

from multiflow.report.bars import layer_bars
from multiflow.report.examples import example_card
from multiflow.report.html import Markup, join, nominal, page, percent, seconds, section, size, tag
from multiflow.report.making import making, reading
from multiflow.report.numbers import numbers
from multiflow.report.palette import DENSE, Look, looks
from multiflow.report.svg import Point, Reference, Series, line_chart, name
from multiflow.report.values import COLLAPSED, Demo, Pruned, wilson
from multiflow.report.words import collapses, count, headline, millions


def demo_page(demo: Demo) -> str:
    """Return ``report.html`` of a demo: one file that loads nothing from anywhere."""
    styles = looks(demo.methods)
    return page(
        f"multiflow demo: {demo.model}",
        _top(demo, styles),
        numbers(demo, styles),
        _quality(demo, styles),
        _zeros(demo, styles),
        _examples(demo, styles),
        reading(demo),
        making(demo),
        description=headline(demo),
    )


def _top(demo: Demo, styles: Mapping[str, Look]) -> Markup:
    prunable = sum(layer.size for layer in demo.layout)
    facts = (
        (seconds(demo.phases["calibrate"]), f"one calibration pass over {demo.calibration} pairs, for every method"),
        (size(max(row.mask_bytes for row in demo.rows)), "a mask file: one bit a weight, and a header"),
        (str(len(demo.rows) + 1), f"models evaluated on {demo.scenes} scenes that training never showed"),
        (seconds(sum(demo.phases.values())), "for everything, from loading the model to this page"),
    )
    return tag(
        "header",
        tag("p", f"multiflow demo · {demo.model}", class_="overline"),
        tag("h1", _coloured(headline(demo), styles)),
        tag(
            "p",
            f"An X-VLM of {millions(demo.parameters)} weights, {millions(prunable)} of them prunable, was pruned once "
            f"by {count(len(demo.methods), 'method')} at {count(len(demo.sparsities), 'sparsity', 'sparsities')}. No "
            f"weight was trained afterwards. Each sparse model then looked for the captions of {demo.scenes} pictures, "
            "and for the pictures of their captions.",
            class_="lead",
        ),
        tag("ul", [tag("li", tag("b", value), tag("span", text)) for value, text in facts], class_="facts"),
    )


def _coloured(text: str, styles: Mapping[str, Look]) -> Markup:
    """Return a sentence with the names of the methods in their colours."""
    names = "|".join(re.escape(method) for method in sorted(styles, key=len, reverse=True))
    pieces = re.split(rf"(?<![\w-])({names})(?![\w-])", text)
    return join([tag("span", p, class_=f"c-{styles[p].colour}") if p in styles else p for p in pieces])


def _quality(demo: Demo, styles: Mapping[str, Look]) -> Markup:
    def point(row: Pruned, metric: str) -> Point:
        value = getattr(row.quality, metric)
        low, high = wilson(value, demo.scenes)
        text = f"{row.method}, {nominal(row.sparsity)} zeros: {value:.1f} (95 % interval {low:.1f} to {high:.1f})"
        return Point(row.sparsity, value, low, high, text)

    def chart(metric: str, title: str) -> Markup:
        series = [
            Series(method, look, tuple(point(demo.row(method, s), metric) for s in demo.sparsities))
            for method, look in styles.items()
        ]
        references = (Reference("dense", getattr(demo.dense, metric)), Reference("chance", demo.chance, dotted=True))
        drawing = line_chart(title, series, references, x_label="zeros among the prunable weights")
        return tag("figure", tag("figcaption", title), drawing)

    low, high = wilson(50, demo.scenes)
    return section(
        "Quality against sparsity",
        tag(
            "div",
            chart("tr1", "TR@1: pictures that find their caption"),
            chart("ir1", "IR@1: captions that find their picture"),
            class_="pair",
        ),
        id="quality",
        lead=f"Whiskers are 95 % intervals. With {demo.scenes} searches they reach up to {(high - low) / 2:.0f} points "
        "to either side: smaller differences may be luck.",
    )


def _zeros(demo: Demo, styles: Mapping[str, Look]) -> Markup:
    def panel(row: Pruned) -> Markup:
        title = f"{row.method} at {nominal(row.sparsity)}: share of zeros in each layer"
        bars = layer_bars(title, demo.layout, row.layers, row.groups, row.sparsity, styles[row.method])
        gone = len(row.collapsed_layers)
        note = tag("span", f"{count(gone, 'layer')} collapsed", class_="gone") if gone else None
        return tag("figure", tag("figcaption", tag("b", nominal(row.sparsity)), " ", note), bars)

    rows = [
        tag(
            "div",
            tag("h3", name(method, look)),
            tag("div", [panel(demo.row(method, s)) for s in demo.sparsities], class_="panels"),
            class_="method",
        )
        for method, look in styles.items()
    ]
    gone = [tag("li", name(method, styles[method]), ": ", what) for method, what in collapses(demo)]
    if gone:
        verdict = tag("div", tag("b", "Collapsed"), tag("ul", gone), class_="verdict bad")
    else:
        kept = f"every layer keeps more than {percent(1 - COLLAPSED)} of its weights."
        verdict = tag("p", tag("b", "Nothing collapsed: "), kept, class_="verdict good")
    return section(
        "Where the zeros went",
        verdict,
        rows,
        id="zeros",
        lead=(
            "One bar a layer, its height the share of zeros. Dashed is what was asked for, solid what each modality "
            "got; the number below says it. ",
            tag("span", f"Red with a flag is collapsed: at least {percent(COLLAPSED)} zeros,", class_="gone"),
            " so that hardly a signal passes.",
        ),
    )


def _examples(demo: Demo, styles: Mapping[str, Look]) -> Markup | None:
    if not demo.examples:
        return None
    cards = [example_card(demo, example, {"dense": DENSE, **styles}) for example in demo.examples]
    return section(
        f"What the models find at {nominal(demo.shown)} zeros",
        tag("div", cards, class_="cards"),
        id="examples",
        lead=f"{count(len(cards), 'scene').capitalize()} of the {demo.scenes}, one of each common kind of disagreement "
        f"between the models: they show how models fail, not how often. The pictures are as the models see them, "
        f"{demo.image_size} pixels wide. Words that the right caption does not have are underlined.",
    )
