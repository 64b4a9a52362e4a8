"""Warm-up of the vision tower on Shapes: say of every patch what covers it.

A tower that starts from random weights does not find shapes through captions alone in any reasonable time; X-VLM starts
from CLIP's tower. Shapes knows its scenes, so the tower is first taught, through a linear head that is thrown away
afterwards, which shape, colour, size and fill covers each patch (none: background) and which background the image has:

    loss = sum over the five questions of the mean over patches of the cross-entropy
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from multiflow.data.shapes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, Scene
from multiflow.models.xvlm import XVLMForPretraining

QUESTIONS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}
CLASSES = (*(1 + len(values) for values in QUESTIONS.values()), len(BACKGROUNDS))  # class 0 of an attribute: no object
POINTS = 4  # sampled along each side of a patch
COVERED = 3 / 16  # share of the points from which on a patch belongs to an object


class PatchClassifier(nn.Module):
    """The vision tower of a model under a linear head, ``(images, 3, side, side)`` -> ``(images, patches, classes)``."""

    def __init__(self, model: XVLMForPretraining):
        super().__init__()
        self.tower = model.vision_encoder
        self.head = nn.Linear(model.config.vision["width"], sum(CLASSES))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits of all questions side by side, in the order of `CLASSES`."""
        return self.head(self.tower(pixel_values)[:, 1:])


def patch_labels(scenes: Sequence[Scene], patches: int) -> Int[np.ndarray, "scenes cells questions"]:
    """Label the ``patches x patches`` patches of every scene, row by row, with one class per question.

    A patch belongs to the object whose disc covers most of its sample points.
    """
    most = max(len(scene.objects) for scene in scenes)
    discs = np.full((len(scenes), most, 3), -1.0, np.float32)
    classes = np.zeros((len(scenes), 1 + most, len(CLASSES)), np.int64)
    for i, scene in enumerate(scenes):
        classes[i, :, -1] = BACKGROUNDS.index(scene.background)
        for j, o in enumerate(scene.objects):
            discs[i, j] = o.x, o.y, o.radius
            classes[i, 1 + j, :-1] = [1 + values.index(getattr(o, name)) for name, values in QUESTIONS.items()]
    points = (np.arange(patches * POINTS, dtype=np.float32) + 0.5) / (patches * POINTS)
    x, y, radius = (discs[:, :, k, None] for k in range(3))
    dx, dy = (points - x) ** 2, (points - y) ** 2
    inside = (dy[:, :, :, None] + dx[:, :, None, :] < (radius * radius)[..., None]) & (radius > 0)[..., None]
    share = inside.reshape(len(scenes), most, patches, POINTS, patches, POINTS).mean((3, 5), dtype=np.float32)
    owner = np.where(share.max(1) >= COVERED, 1 + share.argmax(1), 0).reshape(len(scenes), -1)
    return classes[np.arange(len(scenes))[:, None], owner]


def patch_loss(
    logits: Float[Tensor, "images cells classes"], labels: Int[Tensor, "images cells questions"]
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the sum of the cross-entropies and the share of object patches with all attributes right."""
    *attributes, backgrounds = logits.float().flatten(0, 1).split(CLASSES, dim=1)
    *wanted, background = labels.flatten(0, 1).unbind(1)
    objects = wanted[0] > 0
    loss = F.cross_entropy(backgrounds, background)
    right = []
    for part, want in zip(attributes, wanted, strict=True):
        costs = F.cross_entropy(part, want, reduction="none")
        loss = loss + (costs * objects).sum() / objects.sum().clamp(min=1) + (costs * ~objects).mean()
        right.append((part.argmax(1) == want)[objects])
    figures = {name: hits.float().mean() for name, hits in zip(QUESTIONS, right, strict=True)}
    return loss, {"patches": torch.stack(right).all(0).float().mean(), **figures}
