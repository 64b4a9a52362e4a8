"""How to read a report, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multiflow.report.html import Markup, definitions, number, percent, seconds, section, size, tag
from multiflow.report.values import COLLAPSED, DEMO_FILE, Demo
from multiflow.report.words import plain


def reading(demo: Demo) -> Markup:
    """Return the section that explains the terms."""
    terms = [
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
        )
        terms.append(("multiflow and magnitude-modality", same + "and chooses other weights inside each layer."))
    return section("How to read this", definitions(terms), id="reading")


def making(demo: Demo) -> Markup:
    """Return the section with command, time, settings, versions and files."""
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
    settings = [(key.replace("_", " "), plain(value)) for key, value in demo.settings.items()]
    return section(
        "How it was made",
        tag("pre", tag("code", demo.command)),
        tag("h3", f"Time: {seconds(total)}"),
        tag("div", timeline, class_="timeline", aria_hidden="true"),
        tag("p", ", ".join(f"{phase} {seconds(value)}" for phase, value in demo.phases.items()), class_="lead"),
        tag(
            "div",
            tag("div", tag("h3", "Settings"), definitions(settings)),
            tag("div", tag("h3", "Versions"), definitions(demo.versions.items())),
            class_="pair",
        ),
        tag("h3", "Files beside this page"),
        definitions(_by_folder({DEMO_FILE: len(demo.to_json()), **demo.files})),
        id="making",
    )


def _by_folder(files: Mapping[str, int]) -> Sequence[tuple[str, str]]:
    """One line a folder, with its files and their size together."""
    folders: dict[str, dict[str, int]] = {}
    for path, bytes_ in files.items():
        folder, slash, file = path.rpartition("/")
        folders.setdefault(folder + slash or file, {})[file] = bytes_
    return [
        (folder, f"{', '.join(inside) + ': ' if folder not in inside else ''}{size(sum(inside.values()))}")
        for folder, inside in folders.items()
    ]
