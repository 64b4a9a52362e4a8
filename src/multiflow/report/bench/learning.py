"""The dense learning curves, which say whether the fine-tuning is long enough."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from multiflow.report.bench.values import Bench, Place
from multiflow.report.bench.words import signed
from multiflow.report.records import DENSE


@dataclass(frozen=True)
class Curve:
    """Validation figures of the dense model: (step, mean, lowest, highest) at the steps that all seeds have."""

    track: Place
    seeds: int
    points: tuple[tuple[int, float, float, float], ...]


def curves(bench: Bench) -> list[Curve]:
    """Return the learning curve of every model and task that has one."""
    found = []
    for model in bench.models:
        for track in bench.tracks(model):
            entry = bench.entries.get((track, DENSE))
            runs = [dict(cell.curve) for cell in entry.cells if cell.curve] if entry else []
            steps = sorted(set.intersection(*map(set, runs))) if runs else []
            points = [(step, [run[step] for run in runs]) for step in steps]
            if points:
                made = tuple((step, fmean(values), min(values), max(values)) for step, values in points)
                found.append(Curve(track, len(runs), made))
    return found


def verdict(curve: Curve) -> str:
    """Return what the last third of the steps adds."""
    last, end = curve.points[-1][0], curve.points[-1][1]
    before = [value for step, value, *_ in curve.points if step <= 2 / 3 * last]
    name = f"{curve.track.model}, {curve.track.task}: {curve.track.metric} {end:.1f} after {last} steps"
    return f"{name}; the last third of them adds {signed(end - before[-1])} points." if before else f"{name}."
