"""The figures of a measurement of speed: milliseconds and bytes of every form of a model, and what to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multiflow.formats.timing import Timing

WHOLE, STEP = "whole", "decoding step"
DENSE_FORMS = ("dense fp32", "dense bf16")
"""The baselines."""


@dataclass(frozen=True)
class SpeedCell:
    """One figure: how long one form of the model took for one part of the work."""

    form: str
    part: str
    samples: int
    timing: Timing


@dataclass(frozen=True)
class FormSize:
    """What a form of the model takes; None where it was not measured."""

    memory: int  # bytes of its weights in memory
    file: int | None = None  # bytes on disk
    load: float | None = None  # seconds to load it from there


@dataclass(frozen=True)
class SpeedTable:
    """Figures of one model on one machine.

    Args:
        model: what it is called.
        cells: the times.
        sizes: form -> what it takes.
        left_out: form -> why it could not be measured.
        machine: processor, threads, versions.
    """

    model: str
    cells: tuple[SpeedCell, ...]
    sizes: Mapping[str, FormSize]
    left_out: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def find(self, form: str, part: str, samples: int) -> Timing | None:
        """Return one figure, or None."""
        return next((c.timing for c in self.cells if (c.form, c.part, c.samples) == (form, part, samples)), None)

    @property
    def forms(self) -> list[str]:
        """The forms that were measured."""
        return list(dict.fromkeys(cell.form for cell in self.cells))

    @property
    def columns(self) -> list[tuple[str, int]]:
        """The parts of the work with numbers of samples."""
        return list(dict.fromkeys((cell.part, cell.samples) for cell in self.cells))

    @property
    def baseline(self) -> str:
        """The dense form in floating point that is the faster one over the whole model here."""
        there = [form for form in DENSE_FORMS if form in self.forms] or self.forms
        whole = [column for column in self.columns if column[0] == WHOLE]
        return min(there, key=lambda form: sum(t.median for c in whole if (t := self.find(form, *c))))

    def best(self, part: str, samples: int) -> str:
        """Return the fastest form; the dense one unless another is faster by more than both spread."""
        base = self.find(self.baseline, part, samples)
        best = self.baseline
        for form in self.forms:
            timing, now = self.find(form, part, samples), self.find(best, part, samples)
            if timing is None or (now is not None and timing.median >= now.median):
                continue
            if base is None or timing.median * (1 + timing.spread) < base.median * (1 - base.spread):
                best = form
        return best

    @property
    def sentence(self) -> str:
        """What to use, in one sentence."""
        wins: dict[str, list[str]] = {}
        for part, samples in self.columns:
            if part not in (WHOLE, STEP):
                continue
            form = self.best(part, samples)
            ours, base = self.find(form, part, samples), self.find(self.baseline, part, samples)
            if form != self.baseline and ours and base:
                what = "a decoding step" if part == STEP else "the whole model"
                said = f"{what} at {samples} sample{'s' * (samples > 1)} ({base.median / ours.median:.1f} x)"
                wins.setdefault(form, []).append(said)
        if not wins:
            return f"Nothing here is faster than {self.baseline}."
        return (
            f"Against {self.baseline}: "
            + "; ".join(f"'{form}' is the fastest for {', '.join(where)}" for form, where in wins.items())
            + f"; elsewhere nothing here is faster than {self.baseline}."
        )

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and lines: milliseconds, in brackets the spread where it is above a tenth."""
        head = ["form", "file MB", "load s", "memory MB", *(f"{part} x {n}, ms" for part, n in self.columns)]
        lines = []
        for form in self.forms:
            size = self.sizes[form]
            line = [form, _mb(size.file), "-" if size.load is None else f"{size.load:.2f}", _mb(size.memory)]
            for part, samples in self.columns:
                timing = self.find(form, part, samples)
                spread = f" (± {timing.spread:.0%})" if timing and timing.spread > 0.1 else ""
                line.append("-" if timing is None else f"{1000 * timing.median:.3g}{spread}")
            lines.append(line)
        return head, lines

    def markdown(self) -> str:
        """Write the table and the sentence as Markdown."""
        head, lines = self.rows()
        ruler = ["---", *["---:"] * (len(head) - 1)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *lines))
        notes = "".join(f"\n- {form}: {why}" for form, why in self.left_out.items())
        return f"{table}\n\n{self.sentence}\n{notes}"

    def __str__(self) -> str:
        return self.markdown()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, seconds and bytes."""
        return {
            "model": self.model,
            "machine": dict(self.machine),
            "sentence": self.sentence,
            "sizes": {form: vars(size) for form, size in self.sizes.items()},
            "left_out": dict(self.left_out),
            "times": [
                {
                    "form": cell.form,
                    "part": cell.part,
                    "samples": cell.samples,
                    "median": cell.timing.median,
                    "spread": cell.timing.spread,
                    "turns": len(cell.timing.seconds),
                }
                for cell in self.cells
            ],
        }


def _mb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.3g}"
