"""The dense learning curves, which say whether the fine-tuning is long enough."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from multiflow.bench.records import DENSE, Cell
from multiflow.report.bench.quality import fitted
from multiflow.report.bench.results import Bench, GridPlace, PlaceEntry
from multiflow.report.bench.statistics import Difference, differences, each_of
from multiflow.report.bench.words import difference_text
from multiflow.report.charts import Look, Point, Series, round_axis
from multiflow.report.document import Block, Drawing, Drawings, Items, Mark, Paragraph, Section
from multiflow.report.text import count, listed, seeds_text, signed

TRAININGS = (Look("blue", "circle"), Look("amber", "square"), Look("purple", "triangle"), Look("green", "diamond"))


@dataclass(frozen=True)
class LearningCurve:
    """Validation figures of the dense model: (step, mean, lowest, highest) at the steps that all seeds have."""

    track: GridPlace
    seeds: int
    points: tuple[tuple[int, float, float, float], ...]

    @property
    def steps(self) -> int:
        return self.points[-1][0]


@dataclass(frozen=True)
class Longer:
    """A longer training of the dense model on the same data: its curve, and what it adds on the test data."""

    curve: LearningCurve
    adds: Difference | None


@dataclass(frozen=True)
class Lesson:
    """The training of a task, and longer ones of the same task, model and data that the grid has beside it."""

    curve: LearningCurve
    longer: tuple[Longer, ...] = ()


def curves(bench: Bench) -> list[LearningCurve]:
    return [found for model in bench.models for t in bench.trainings(model) if (found := _curve(bench, t))]


def lessons(bench: Bench) -> list[Lesson]:
    """Return the learning curves with those of dense trainings alone beside the one that they prolong."""
    found = {curve.track: curve for curve in curves(bench)}
    beside: dict[GridPlace, list[Longer]] = {}
    for track, curve in found.items():
        shorter = [other for other, its in found.items() if its.steps < curve.steps]
        if _alone(bench, track) and (short := _same_data(bench, track, shorter)):
            adds = differences({name: each_of(_dense(bench, t).cells) for name, t in (("a", track), ("b", short))})
            beside.setdefault(short, []).append(Longer(curve, adds.get(("a", "b"))))
    placed = {longer.curve.track for those in beside.values() for longer in those}
    return [Lesson(curve, tuple(beside.get(track, ()))) for track, curve in found.items() if track not in placed]


def verdict(lesson: Lesson) -> str:
    """Return how far the training gets, what its last part adds, and what a longer one does."""
    curve = lesson.curve
    track, (last, end, *_) = curve.track, curve.points[-1]
    said = f"{track.model}, {track.task}: {track.metric} {end:.1f} on the validation data after {last} steps"
    before = [(step, value) for step, value, *_ in curve.points if step <= 2 / 3 * last]
    if before:
        said += f", {signed(end - before[-1][1])} since step {before[-1][0]}"
    for longer in lesson.longer:
        said += f"; {longer.curve.points[-1][1]:.1f} after {longer.curve.steps}"
        if longer.adds:
            said += f" (on the test data {difference_text(longer.adds)}, {seeds_text(longer.adds.seeds)})"
    return f"{said}."


def gained(found: list[Lesson]) -> str | None:
    """Return in one sentence what longer trainings add; None where there are none."""
    pairs = [(lesson, longer) for lesson in found for longer in lesson.longer if longer.adds]
    if not pairs:
        return None
    better = [(lesson, longer) for lesson, longer in pairs if longer.adds and longer.adds.low > 0]
    named = [f"{a.curve.track.task} on {a.curve.track.model} {signed(b.adds.value)}" for a, b in better if b.adds]
    begin = f"Longer training of the dense model ends higher on the test data, beyond noise, in {len(better)} of"
    return f"{begin} {len(pairs)} comparisons{': ' * bool(named)}{listed(named)}."


def _curve(bench: Bench, track: GridPlace) -> LearningCurve | None:
    entry = bench.entries.get((track, DENSE))
    runs = [dict(cell.curve) for cell in entry.cells if cell.curve] if entry else []
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    points = [(step, [run[step] for run in runs]) for step in steps]
    made = tuple((step, fmean(values), min(values), max(values)) for step, values in points)
    return LearningCurve(track, len(runs), made) if made else None


def _alone(bench: Bench, track: GridPlace) -> bool:
    return (track.model, track.task) in bench.dense_alone


def _same_data(bench: Bench, track: GridPlace, others: list[GridPlace]) -> GridPlace | None:
    """The one among others that this training prolongs: of the same model, kind, data and metric."""
    wanted = _without_training(_dense(bench, track).cells[0])
    for other in others:
        same = (other.model, other.metric) == (track.model, track.metric) and not _alone(bench, other)
        if same and wanted and _without_training(_dense(bench, other).cells[0]) == wanted:
            return other
    return None


def _dense(bench: Bench, track: GridPlace) -> PlaceEntry:
    return bench.entries[track, DENSE]


def _without_training(cell: Cell) -> str | None:
    """What a cell is evaluated on, without how it was trained; None where its settings do not say."""
    task = cell.settings.get("task")
    if not isinstance(task, Mapping):
        return None
    return json.dumps({name: value for name, value in task.items() if name != "finetune"}, sort_keys=True, default=str)


def learning_section(bench: Bench) -> Section | None:
    found = lessons(bench)
    if not found:
        return None
    lead = (
        "The dense models on the validation data during their training, mean over seeds; "
        "whiskers reach from the lowest seed to the highest. All cells of a task are fine-tuned for as many steps. "
        "The learning rate falls to zero at the end, which flattens any curve: whether more steps would "
        "help, only a longer training tells."
    )
    if any(lesson.longer for lesson in found):
        lead += " Those shown here are of the dense model alone and take no part in the comparisons."
    adds = gained(found)
    blocks: list[Block] = [Paragraph(Mark(adds, "strong"))] if adds else []
    blocks += [Drawings([_chart(lesson) for lesson in found]), Items([verdict(lesson) for lesson in found])]
    return Section("learning", "How long to fine-tune", blocks, lead)


def _chart(lesson: Lesson) -> Drawing:
    drawn = [lesson.curve, *(longer.curve for longer in lesson.longer)]
    track, last = lesson.curve.track, max(*(curve.steps for curve in drawn), 1)
    series = [_series(curve, TRAININGS[i % len(TRAININGS)]) for i, curve in enumerate(drawn)]
    return fitted(f"{track.model}, {track.task}: {track.metric}", series, (), round_axis("steps", 0, last))


def _series(curve: LearningCurve, look: Look) -> Series:
    name, seeds = f"{curve.steps} steps", count(curve.seeds, "seed")
    points = [
        Point(step, mean, low, high, f"training of {name}, step {step}: {mean:.1f} ({seeds}, {low:.1f} to {high:.1f})")
        for step, mean, low, high in curve.points
    ]
    return Series(name, look, tuple(points))
