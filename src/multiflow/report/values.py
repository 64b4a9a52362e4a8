"""What a demo found, as plain frozen values: what its JSON holds and its page shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from statistics import fmean, pstdev, stdev
from typing import TYPE_CHECKING, Any

from multiflow.base.types import Layer

if TYPE_CHECKING:
    from multiflow.tasks.retrieval.task import Recall

DEMO_FILE, REPORT_FILE = "demo.json", "report.html"
COLLAPSED = 0.99
"""Share of zeros from which a layer or a modality counts as collapsed: nothing much passes it."""
NEAR_CHANCE = 3
"""A recall below so many times chance counts as lost."""


@dataclass(frozen=True)
class Pruned:
    """One method at one sparsity.

    Args:
        method: name of the pruner.
        sparsity: share of zeros asked for.
        achieved: share of zeros got.
        groups: modality -> share of zeros.
        layers: layer name -> share of zeros, in layout order.
        quality: recall after re-ranking, in percent.
        itc: recall of the contrastive similarity alone, in percent.
        hits: one digit a scene: how many of its two searches (0 to 2) have the right answer first.
        prune_seconds: seconds to the masks of all sparsities of the method, calibration included if it needs one.
        mask_file: path in the output folder.
        mask_bytes: size of that file.
    """

    method: str
    sparsity: float
    achieved: float
    groups: Mapping[str, float]
    layers: Mapping[str, float]
    quality: Recall
    itc: Recall
    hits: str
    prune_seconds: float
    mask_file: str
    mask_bytes: int

    @property
    def collapsed_groups(self) -> list[str]:
        """Modalities of which nearly nothing is left."""
        return [name for name, share in self.groups.items() if share >= COLLAPSED]

    @property
    def collapsed_layers(self) -> list[str]:
        """Layers of which nearly nothing is left."""
        return [name for name, share in self.layers.items() if share >= COLLAPSED]


@dataclass(frozen=True)
class Find:
    """What one model puts first for a test scene: for its picture a caption, for its caption a picture.

    Both are numbers of test scenes; right is the number of the scene itself.
    """

    method: str
    caption: int
    picture: int


@dataclass(frozen=True)
class Example:
    """A test scene and what every model finds for it, the dense one first."""

    scene: int
    finds: tuple[Find, ...]

    @property
    def scenes(self) -> set[int]:
        """All scenes that are to be shown: its own and those of the finds."""
        return {self.scene} | {found for find in self.finds for found in (find.caption, find.picture)}

    @property
    def verdicts(self) -> tuple[bool, ...]:
        """Whether each find is right: caption and picture, model by model."""
        return tuple(found == self.scene for find in self.finds for found in (find.caption, find.picture))


@dataclass(frozen=True)
class Demo:
    """Everything a demo found.

    Args:
        model: name of the model.
        parameters: number of its weights.
        layout: its prunable layers.
        scenes: number of test scenes, each with one caption.
        shortlist: candidates that are re-ranked.
        calibration: number of image-text pairs of the calibration pass.
        dense: recall of the dense model after re-ranking, in percent.
        dense_itc: the same of the contrastive similarity alone.
        rows: one entry a method and sparsity, by method.
        shown: the sparsity of the headline and of the examples.
        examples: a few test scenes.
        captions: captions of the scenes that the examples need, by number.
        pictures: their pictures as PNG files.
        image_size: side of the pictures in pixels.
        phases: what was done -> seconds.
        settings: the settings of the run.
        versions: versions of the libraries.
        command: the command that repeats the run.
        files: files of the run besides the report -> size in bytes.
    """

    model: str
    parameters: int
    layout: tuple[Layer, ...]
    scenes: int
    shortlist: int
    calibration: int
    dense: Recall
    dense_itc: Recall
    rows: tuple[Pruned, ...]
    shown: float
    examples: tuple[Example, ...]
    captions: Mapping[int, str] = field(repr=False)
    pictures: Mapping[int, bytes] = field(repr=False)
    image_size: int
    phases: Mapping[str, float]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    files: Mapping[str, int]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities asked for, ascending."""
        return tuple(sorted({row.sparsity for row in self.rows}))

    @property
    def groups(self) -> dict[str, tuple[Layer, ...]]:
        """Modality -> its layers."""
        names = dict.fromkeys(layer.group for layer in self.layout)
        return {name: tuple(layer for layer in self.layout if layer.group == name) for name in names}

    @property
    def chance(self) -> float:
        """Recall@1 of guessing, in percent."""
        return 100 / self.scenes

    def row(self, method: str, sparsity: float) -> Pruned:
        """Return one row."""
        return next(row for row in self.rows if (row.method, row.sparsity) == (method, sparsity))

    def leaders(self, sparsity: float) -> list[str]:
        """Return the best methods of a sparsity, down to the last that is too close to the first; none near chance."""
        rows = sorted((row for row in self.rows if row.sparsity == sparsity), key=lambda r: -recall_at_1(r.quality))
        if recall_at_1(rows[0].quality) < NEAR_CHANCE * self.chance:
            return []
        last = max(i for i, row in enumerate(rows) if i == 0 or too_close(rows[0].hits, row.hits))
        return [row.method for row in rows[: last + 1]]

    def to_json(self) -> str:
        """Return all numbers, settings and versions; pictures are left out."""
        values = {name: value for name, value in asdict(self).items() if name != "pictures"}
        return json.dumps(values, indent=2, default=str) + "\n"


def recall_at_1(recall: Recall) -> float:
    """Mean of TR@1 and IR@1, the one figure of the headline.

    >>> from types import SimpleNamespace
    >>> recall_at_1(SimpleNamespace(tr1=80.0, ir1=90.0))
    85.0
    """
    return fmean((recall.tr1, recall.ir1))


def most_telling(rows: Sequence[Pruned], chance: float) -> float:
    """Return the sparsity at which the methods differ most, or the lowest one where all are near chance everywhere.

    The worst method of a sparsity does not count: most often it is at chance.
    """
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row.sparsity, []).append(recall_at_1(row.quality))
    alive = [s for s in found if max(found[s]) >= NEAR_CHANCE * chance]
    return max(alive, key=lambda s: pstdev(sorted(found[s])[len(found[s]) > 2 :])) if alive else min(found)


def too_close(a: str, b: str) -> bool:
    """Whether the hits of two models differ, scene by scene, by less than chance would explain 95 times of 100.

    >>> too_close("2222222222", "2222222212"), too_close("2222222222", "2200020002")
    (True, False)
    """
    differences = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    return abs(fmean(differences)) <= 1.96 * stdev(differences) / sqrt(len(differences))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a percentage measured on ``count`` cases (Wilson), in percent.

    >>> tuple(round(end, 1) for end in wilson(80.0, 200))
    (73.9, 85.0)
    """
    z, p = 1.96, share / 100
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
