"""The report of a demo: what survived, where the zeros went, what the models find, how it was made."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from typing import Any

from markupsafe import Markup

from multiflow.base.files import plain
from multiflow.bench.demo import Demo, Example, Find, mask_path
from multiflow.bench.records import DEMO_FILE, DENSE, Cell
from multiflow.report.charts import (
    COLLAPSED,
    DENSE_LOOK,
    Look,
    Point,
    Reference,
    Series,
    line_chart,
    looks,
    pruner_name,
    tag,
)
from multiflow.report.document import (
    Block,
    Document,
    Drawing,
    Drawings,
    Group,
    Mark,
    Markups,
    Pairs,
    Paragraph,
    Section,
    Text,
    inline,
)
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import count, listed, millions, nominal, number, percent, points, seconds, setting, size
from multiflow.report.worth import worth_sections
from multiflow.report.zeros import Spread, collapse_verdict, layer_panels, spreads
from multiflow.tasks.retrieval.task import TASK

REPORT_FILE = "report.html"


def demo_document(demo: Demo) -> Document:
    styles = {DENSE: DENSE_LOOK, **looks(demo.methods)}
    prunable = sum(layer.size for layer in demo.layout)
    masks = max(demo.files[mask_path(cell.pruner, cell.sparsity)] for cell in demo.cells)
    facts = [
        (seconds(demo.phases["calibrate"]), f"one calibration pass over {demo.calibration} pairs, for every method"),
        (size(masks), "a mask file: one bit a weight, and a header"),
        (str(len(demo.cells) + 1), f"models evaluated on {demo.scenes} scenes that training never showed"),
        (seconds(sum(demo.phases.values())), "for everything, from loading the model to this page"),
    ]
    lead = (
        f"A model of {millions(demo.parameters)} weights, {millions(prunable)} of them prunable, was pruned once "
        f"by {count(len(demo.methods), 'method')} at {count(len(demo.sparsities), 'sparsity', 'sparsities')}. No "
        f"weight was trained afterwards. Each sparse model then looked for the captions of {demo.scenes} pictures, "
        "and for the pictures of their captions."
    )
    sections = [_numbers(demo, styles), _quality(demo, styles), *worth_sections(demo.worth, TASK.main)]
    sections.append(_zeros(demo, styles))
    if demo.examples:
        sections.append(_examples(demo, styles))
    sections += [Section("reading", "How to read this", [Pairs(_terms(demo))]), _making(demo)]
    title = f"multiflow demo: {demo.model}"
    return Document(title, headline(demo), lead, facts, sections, styles)


def headline(demo: Demo) -> str:
    found = {method: demo.cell(method, demo.shown).score or 0.0 for method in demo.methods}
    ranked = sorted(found, key=lambda method: -found[method])
    leaders = demo.leaders(demo.shown)
    dense = f"dense model: {points(demo.dense.score or 0.0)}"
    begin = f"At {nominal(demo.shown)} zeros and without retraining,"
    if not leaders:
        return (
            f"{begin} no method is far from chance: the best, {ranked[0]}, puts the right answer first in "
            f"{points(found[ranked[0]])} of 100 searches ({dense})."
        )
    others = [f"{method} {points(found[method])}" for method in ranked if method not in leaders]
    figures = listed([points(found[method]) for method in leaders])
    models, puts, close = ("model", "puts", "") if len(leaders) == 1 else ("models", "put", ", too close to call")
    return (
        f"{begin} the {models} pruned by {listed(leaders)} still {puts} the right answer first in {figures} of 100 "
        f"searches{close} ({dense}){'; ' * bool(others)}{', '.join(others)}."
    )


def demo_spreads(demo: Demo) -> list[Spread]:
    return spreads(demo.prunings, [demo.model], demo.methods)


def _numbers(demo: Demo, styles: Mapping[str, Look]) -> Section:
    zeros = {(one.pruner, one.sparsity): one for one in demo_spreads(demo)}
    searches = {"TR@1": "picture that looks for its caption", "IR@1": "caption that looks for its picture"}
    head = [
        Column("method", class_="first"),
        Column("zeros", hint="share of zeros among all prunable weights", class_="number"),
        *(
            Column(
                title,
                hint=f"percent of the searches of a {query} that have the right answer first",
                class_="number metered",
            )
            for title, query in searches.items()
        ),
        *(Column(group, hint=f"share of zeros among the {group} weights", class_="number") for group in demo.groups),
        Column(
            "seconds",
            hint="to the masks of all sparsities of the method, calibration included where it needs any",
            class_="number",
        ),
        Column("mask file", hint="one bit a weight, and a header", class_="number"),
    ]
    rows = []
    for cell in (demo.dense, *sorted(demo.cells, key=lambda cell: cell.sparsity)):
        spread = zeros.get((cell.pruner, cell.sparsity))
        best = cell is not demo.dense and cell.pruner in demo.leaders(cell.sparsity)
        cells = [_zeros_cell(spread.achieved if spread else 0.0, flag=False)]
        cells += [
            TableCell(
                f"{cell.figures[title]:.1f}",
                cell.figures[title],
                "best" if best else "plain",
                meter=cell.figures[title] / 100,
            )
            for title in searches
        ]
        cells += [_zeros_cell(spread.groups[group] if spread else 0.0) for group in demo.groups]
        took = demo.seconds(cell.pruner) if spread else 0.0
        bytes_ = demo.files[mask_path(cell.pruner, cell.sparsity)] if spread else 0
        cells += [TableCell(f"{took:.2f}" if spread else "", took), TableCell(size(bytes_) if spread else "", bytes_)]
        rows.append(Row([TableCell(cell.pruner, cell.pruner, icon=styles[cell.pruner]), *cells], cell.pruner))
    caption = f"Recall@1 in percent of {demo.scenes} searches, and the share of zeros in each modality"
    lead = "One row a model; the headings sort. Bold is the best of each sparsity, and what is too close to it to call."
    return Section("numbers", "All numbers", [Table(head, rows, caption)], lead)


def _zeros_cell(share: float, *, flag: bool = True) -> TableCell:
    return TableCell(percent(share, 1), share, "gone" if flag and share >= COLLAPSED else None)


def _quality(demo: Demo, styles: Mapping[str, Look]) -> Section:
    def point(cell: Cell, metric: str) -> Point:
        value = cell.figures[metric]
        low, high = wilson(value, demo.scenes)
        text = f"{cell.pruner}, {nominal(cell.sparsity)} zeros: {value:.1f} (95 % interval {low:.1f} to {high:.1f})"
        return Point(cell.sparsity, value, low, high, text)

    def chart(metric: str, title: str) -> Drawing:
        series = [
            Series(method, styles[method], tuple(point(demo.cell(method, s), metric) for s in demo.sparsities))
            for method in demo.methods
        ]
        references = (Reference("dense", demo.dense.figures[metric]), Reference("chance", demo.chance, dotted=True))
        return Drawing(line_chart(title, series, references, x_label="zeros among the prunable weights"), title)

    low, high = wilson(50, demo.scenes)
    charts = [
        chart("TR@1", "TR@1: pictures that find their caption"),
        chart("IR@1", "IR@1: captions that find their picture"),
    ]
    lead = (
        f"Whiskers are 95 % intervals. With {demo.scenes} searches they reach up to {(high - low) / 2:.0f} points to "
        "either side: smaller differences may be luck."
    )
    return Section("quality", "Quality against sparsity", [Drawings(charts, "pair")], lead)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a percentage measured on ``count`` cases (Wilson), in percent.

    >>> tuple(round(end, 1) for end in wilson(80.0, 200))
    (73.9, 85.0)
    """
    z, p = 1.96, share / 100
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _zeros(demo: Demo, styles: Mapping[str, Look]) -> Section:
    found = demo_spreads(demo)
    lead = (
        "One bar a layer, its height the share of zeros. Dashed is what was asked for, solid what each modality "
        "got; the number below says it. ",
        Mark(f"Red with a flag is collapsed: at least {percent(COLLAPSED)} zeros,", "gone"),
        " so that hardly a signal passes.",
    )
    return Section("zeros", "Where the zeros went", [collapse_verdict(found), *layer_panels(found, styles)], lead)


def _examples(demo: Demo, styles: Mapping[str, Look]) -> Section:
    lead = (
        f"{count(len(demo.examples), 'scene').capitalize()} of the {demo.scenes}, one of each common kind of "
        "disagreement between the models: they show how models fail, not how often. The pictures are as the models "
        f"see them, {demo.image_size} pixels wide. Words that the right caption does not have are underlined."
    )
    cards = [example_card(demo, example, styles) for example in demo.examples]
    heading = f"What the models find at {nominal(demo.shown)} zeros"
    return Section("examples", heading, [Markups(cards, "cards")], lead)


def example_card(demo: Demo, example: Example, styles: Mapping[str, Look]) -> Markup:
    """Return a scene, the picture each model finds for its caption and the caption each finds for its picture."""
    truth = demo.captions[example.scene]

    def picture(scene: int, scale: float, alt: str) -> Markup:
        side, data = round(demo.image_size * scale), b64encode(demo.pictures[scene]).decode()
        return tag("img", src=f"data:image/png;base64,{data}", alt=alt, width=side, height=side)

    def found_picture(find: Find) -> Markup:
        right = find.picture == example.scene
        text = "the right picture" if right else demo.captions[find.picture]
        shown = picture(find.picture, 1.6, f"{find.method} finds {text}")
        thumb = tag("div", shown, _sign(right), class_="thumb")
        look = "right" if right else "wrong"
        return tag(
            "li", thumb, pruner_name(find.method, styles[find.method]), class_=look, title=f"{find.method}: {text}"
        )

    def found_caption(find: Find) -> Markup:
        right = find.caption == example.scene
        text = "the right caption" if right else mark_changes(demo.captions[find.caption], truth)
        who, said = pruner_name(find.method, styles[find.method]), tag("span", inline(text))
        return tag("li", who, _sign(right), said, class_="right" if right else "wrong")

    scene = tag("div", tag("p", f"Scene {example.scene}", class_="overline"), tag("blockquote", truth))
    return tag(
        "article",
        tag("div", picture(example.scene, 3, f"test scene {example.scene}: {truth}"), scene, class_="scene"),
        tag("h4", "Caption \N{RIGHTWARDS ARROW} picture found"),
        tag("ul", map(found_picture, example.finds), class_="found"),
        tag("h4", "Picture \N{RIGHTWARDS ARROW} caption found"),
        tag("ul", map(found_caption, example.finds), class_="said"),
        class_="card",
    )


def mark_changes(found: str, truth: str) -> Text:
    """Return a caption with the words marked that the right one does not have.

    >>> mark_changes("a red star", "a red disc")
    ('a red ', Mark(text='star', look='new'), '')
    """
    known = set(re.findall(r"\w+", truth.lower()))
    parts: list[Text] = [""]
    for i, part in enumerate(re.split(r"(\w+)", found)):  # words at the odd places
        if i % 2 and part.lower() not in known:
            parts += [Mark(part, "new"), ""]
        else:
            parts[-1] = f"{parts[-1]}{part}"
    return tuple(parts)


def _sign(right: bool) -> Markup:
    sign, word = ("\N{CHECK MARK}", "right") if right else ("\N{MULTIPLICATION X}", "wrong")
    return tag("span", sign, class_="verdict-mark", role="img", aria_label=word)


def _terms(demo: Demo) -> list[tuple[str, Text]]:
    terms: list[tuple[str, Text]] = [
        (
            "TR@1, IR@1",
            f"Share of the {demo.scenes} pictures (captions) whose own caption (picture) comes first among all "
            f"{demo.scenes}. The {demo.shortlist} most similar by contrastive features are ranked again by the "
            f"matching head. Guessing scores {number(demo.chance)} %.",
        ),
        (
            "zeros",
            "Share of the prunable weights that were set to zero: those of the linear layers of both towers and of the "
            "fusion. Embeddings, norms, biases and heads stay dense.",
        ),
        ("modality", "vision: the image tower. text: the layers that see words alone. fusion: those that see both."),
        (
            "too close to call",
            "Two methods whose hits, compared scene by scene, differ by less than 1.96 standard errors of the mean.",
        ),
        ("collapsed", f"At least {percent(COLLAPSED)} zeros in a layer or in a modality."),
        (
            "seconds",
            "From the calibrated model to the masks of all sparsities; the shared calibration pass is added for the "
            "methods that use it.",
        ),
        (
            "what it does not say",
            "Nothing was fine-tuned: the figures show what pruning alone leaves. A method that looks lost here may "
            "recover with training, and a small synthetic world is no photograph.",
        ),
    ]
    if {"multiflow", "magnitude-modality"} <= set(demo.methods):
        same = (
            "have the same share of zeros in every layer: MULTIFLOW takes its budgets from magnitude in each modality, "
            "and chooses other weights inside each layer."
        )
        terms.append(("multiflow and magnitude-modality", same))
    return terms


def _making(demo: Demo) -> Section:
    total = sum(demo.phases.values())
    timeline = [
        tag(
            "span",
            phase if value > 0.08 * total else None,
            style=f"flex-grow:{number(1000 * value / total)}",
            title=f"{phase}: {seconds(value)}",
        )
        for phase, value in demo.phases.items()
    ]
    settings = [(key.replace("_", " "), setting(value)) for key, value in demo.settings.items()]
    blocks: list[Block] = [
        Markups([tag("pre", tag("code", demo.command))]),
        Paragraph(f"Time: {seconds(total)}", "h3"),
        Markups([tag("div", timeline, class_="timeline", aria_hidden="true")]),
        Paragraph(", ".join(f"{phase} {seconds(value)}" for phase, value in demo.phases.items()), "lead"),
        Group([Pairs(settings, "Settings"), Pairs(list(demo.dense.versions.items()), "Versions")], "pair"),
        Pairs(
            _by_folder({DEMO_FILE: len(json.dumps(demo_values(demo), indent=2, default=plain)), **demo.files}),
            "Files beside this page",
        ),
    ]
    return Section("making", "How it was made", blocks)


def _by_folder(files: Mapping[str, int]) -> Sequence[tuple[str, str]]:
    folders: dict[str, dict[str, int]] = {}
    for path, bytes_ in files.items():
        folder, slash, file = path.rpartition("/")
        folders.setdefault(folder + slash or file, {})[file] = bytes_
    return [
        (folder, f"{', '.join(inside) + ': ' if folder not in inside else ''}{size(sum(inside.values()))}")
        for folder, inside in folders.items()
    ]


def demo_values(demo: Demo) -> dict[str, Any]:
    """Return what ``demo.json`` holds: all numbers, settings and versions; pictures are left out."""
    zeros = {(one.pruner, one.sparsity): one for one in demo_spreads(demo)}
    rows = []
    for cell in demo.cells:
        spread, path = zeros[cell.pruner, cell.sparsity], mask_path(cell.pruner, cell.sparsity)
        rows.append(
            {
                "method": cell.pruner,
                "sparsity": cell.sparsity,
                "achieved": spread.achieved,
                "groups": spread.groups,
                "layers": spread.layers,
                "quality": _recall(cell),
                "itc": _recall(cell, "ITC "),
                "hits": "".join(str(round(share / 50)) for share in cell.each),
                "prune_seconds": demo.seconds(cell.pruner),
                "mask_file": path,
                "mask_bytes": demo.files[path],
            }
        )
    return {
        **{key: getattr(demo, key) for key in ("model", "parameters")},
        "layout": [asdict(layer) for layer in demo.layout],
        **{key: getattr(demo, key) for key in ("scenes", "shortlist", "calibration")},
        "dense": _recall(demo.dense),
        "worth": [asdict(one) for one in demo.worth],
        "dense_itc": _recall(demo.dense, "ITC "),
        "rows": rows,
        "shown": demo.shown,
        "examples": [asdict(example) for example in demo.examples],
        **{key: getattr(demo, key) for key in ("captions", "image_size", "phases", "settings")},
        "versions": demo.dense.versions,
        **{key: getattr(demo, key) for key in ("command", "files")},
    }


def _recall(cell: Cell, prefix: str = "") -> dict[str, float]:
    """The recalls of a cell, named as ``demo.json`` names them: ``tr1``."""
    names = [f"{way}@{at}" for way in ("TR", "IR") for at in (1, 5, 10)]
    return {name.replace("@", "").lower(): cell.figures[prefix + name] for name in names}
