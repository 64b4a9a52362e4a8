"""The section of the page about the length of fine-tuning."""

from __future__ import annotations

from multiflow.report.bench.learning import Curve, Lesson, gained, lessons, verdict
from multiflow.report.bench.page_quality import figure_of
from multiflow.report.bench.values import Bench
from multiflow.report.html import Markup, section, tag
from multiflow.report.palette import Look
from multiflow.report.svg import Point, Series, round_axis
from multiflow.report.words import count

TRAININGS = (Look("blue", "circle"), Look("amber", "square"), Look("purple", "triangle"), Look("green", "diamond"))


def learning(bench: Bench) -> Markup | None:
    """Return the section of the dense learning curves."""
    found = lessons(bench)
    if not found:
        return None
    longer = any(lesson.longer for lesson in found)
    lead = (
        "The dense models on the validation data during their training, mean over seeds; "
        "whiskers reach from the lowest seed to the highest. All cells of a task are fine-tuned for as many steps. "
        "The learning rate falls to zero at the end, which flattens any curve: whether more steps would "
        "help, only a longer training tells."
        + " Those shown here are of the dense model alone and take no part in the comparisons."
        * longer
    )
    adds = gained(found)
    said = tag("ul", [tag("li", verdict(lesson)) for lesson in found], class_="said-list")
    return section(
        "How long to fine-tune",
        tag("p", tag("b", adds)) if adds else None,
        tag("div", map(_chart, found), class_="charts"),
        said,
        id="learning",
        lead=lead,
    )


def _chart(lesson: Lesson) -> Markup:
    drawn = [lesson.curve, *(longer.curve for longer in lesson.longer)]
    track = lesson.curve.track
    last = max(*(curve.steps for curve in drawn), 1)
    return figure_of(
        f"{track.model}, {track.task}: {track.metric}",
        [_series(curve, TRAININGS[i % len(TRAININGS)]) for i, curve in enumerate(drawn)],
        (),
        lambda: round_axis("steps", 0, last),
    )


def _series(curve: Curve, look: Look) -> Series:
    name = f"{curve.steps} steps"
    points = tuple(
        Point(
            *(step, mean, low, high),
            f"training of {name}, step {step}: {mean:.1f} ({count(curve.seeds, 'seed')}, {low:.1f} to {high:.1f})",
        )
        for step, mean, low, high in curve.points
    )
    return Series(name, look, points)
