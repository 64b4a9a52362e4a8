"""Warm-up of the vision tower on Shapes: say of every patch what covers it.

A tower that starts from random weights does not find shapes through captions alone in any reasonable time; X-VLM starts
from CLIP's tower. Shapes knows its scenes, so the tower is first taught, through a linear head that is thrown away
afterwards, which shape, colour, size and fill covers each patch, which background the image has, and which pixels of
the patch lie inside the outline of an object:

    loss = CE(background) + sum over attributes (CE on object patches + CE on empty patches) + BCE(pixels)

The pixels matter most at first: a tower with a single patch convolution learns outlines from them, and shapes from
outlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multiflow.data import to_pixels
from multiflow.families.pairs import PairModel, recipe_of
from multiflow.tasks.task import Batch
from multiflow.training.loop import Trained, train
from multiflow.worlds.shapes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, Scene, make_scenes, render
from multiflow.worlds.shapes.models import Pretraining
from multiflow.worlds.shapes.render import OUTLINES

ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}
CLASSES = (*(1 + len(values) for values in ATTRIBUTES.values()), len(BACKGROUNDS))  # class 0 of an attribute: no object
PIXELS = 10.0  # weight of the outlines
COVERED = 0.06  # share of its pixels from which on a patch belongs to an object


def train_vision(model: PairModel, settings: Pretraining, run_dir: Path, **options: Any) -> Trained:

    def loss(classifier: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return patch_loss(classifier(batch["pixel_values"]), batch["labels"], batch["pixels"])

    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        classifier = PatchClassifier(model).to(settings.device)
    plan = settings.stage(settings.vision_steps, settings.vision_lr)
    return train(classifier, lambda position: vision_batch(settings, position), loss, plan, run_dir, **options)


def vision_batch(settings: Pretraining, position: int) -> Batch:
    count, side = settings.vision_batch_size, settings.image_size
    scenes = make_scenes("train", count, seed=settings.seed, start=position * count)
    classes, pixels = patch_labels(scenes, side, settings.patch_size)
    labels = {"labels": torch.from_numpy(classes), "pixels": torch.from_numpy(pixels)}
    return {"pixel_values": torch.from_numpy(to_pixels([render(scene, side) for scene in scenes], side)), **labels}


class PatchClassifier(nn.Module):
    """The vision tower of a model under a linear head: pictures to ``(images, patches, outputs)``."""

    def __init__(self, model: PairModel):
        super().__init__()
        self.tower = recipe_of(model).tower(model)
        self.head = nn.Linear(model.config.vision["width"], sum(CLASSES) + model.config.patch_size**2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return side by side the logits of every question, in the order of `CLASSES`, and of every pixel."""
        states = self.tower(pixel_values)
        return self.head(getattr(states, "last_hidden_state", states)[:, 1:])


def patch_labels(
    scenes: Sequence[Scene], side: int, patch: int
) -> tuple[Int[np.ndarray, "scenes patches questions"], Bool[np.ndarray, "scenes patches pixels"]]:
    """Label the patches of every scene, row by row.

    A patch belongs to the object that covers most of its pixels.

    Args:
        scenes: what to label.
        side: side of the pictures in pixels.
        patch: side of a patch in pixels.

    Returns:
        One class per question, and which pixels lie inside an outline.
    """
    most = max(len(scene.objects) for scene in scenes)
    classes = np.zeros((len(scenes), 1 + most, len(CLASSES)), np.int64)
    owners = np.empty((len(scenes), side, side), np.int64)
    for i, scene in enumerate(scenes):
        owners[i] = owner_map(scene, side)
        classes[i, :, -1] = BACKGROUNDS.index(scene.background)
        for j, o in enumerate(scene.objects, 1):
            classes[i, j, :-1] = [1 + values.index(getattr(o, name)) for name, values in ATTRIBUTES.items()]
    count = side // patch
    pixels = owners.reshape(-1, count, patch, count, patch).swapaxes(2, 3).reshape(len(scenes), count**2, patch**2)
    share = np.stack([(pixels == j).mean(2) for j in range(1, 1 + most)], 2)
    owner = np.where(share.max(2) >= COVERED, 1 + share.argmax(2), 0)
    return classes[np.arange(len(scenes))[:, None], owner], pixels > 0


def owner_map(scene: Scene, side: int) -> Int[np.ndarray, "side side"]:
    """Return of every pixel the number of the object whose outline it lies in, from 1; 0: none."""
    middle = (np.arange(side, dtype=np.float32) + 0.5) / side
    owners = np.zeros((side, side), np.int64)
    for number, o in enumerate(scene.objects, 1):
        u, v = (middle - o.x) / o.radius, (middle - o.y) / o.radius
        owners[OUTLINES[o.shape](u[None, :], v[:, None]) < 0] = number
    return owners


def patch_loss(
    logits: Float[Tensor, "images patches outputs"],
    labels: Int[Tensor, "images patches questions"],
    pixels: Bool[Tensor, "images patches pixels"],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss, and for each attribute and for all together the share of object patches that are right."""
    sizes = (*CLASSES, pixels.shape[-1])
    *attributes, background, inside = logits.float().flatten(0, 1).split(sizes, dim=1)
    *wanted, wanted_background = labels.flatten(0, 1).unbind(1)
    objects = wanted[0] > 0
    outlines = F.binary_cross_entropy_with_logits(inside, pixels.flatten(0, 1).float())
    loss = F.cross_entropy(background, wanted_background) + PIXELS * outlines
    right = []
    for part, want in zip(attributes, wanted, strict=True):
        costs = F.cross_entropy(part, want, reduction="none")
        loss = loss + (costs * objects).sum() / objects.sum().clamp(min=1) + (costs * ~objects).mean()
        right.append((part.argmax(1) == want)[objects])
    figures = {name: hits.float().mean() for name, hits in zip(ATTRIBUTES, right, strict=True)}
    return loss, {"patches": torch.stack(right).all(0).float().mean(), "outlines": outlines, **figures}
