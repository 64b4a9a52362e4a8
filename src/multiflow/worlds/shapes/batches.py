"""Batches of Shapes for pretraining, each a pure function of the settings and its position in the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multiflow.data import collate_pairs, collate_regions, to_pixels
from multiflow.data.feed import Batch
from multiflow.worlds.shapes import Scene, describe, make_scenes, regions, render
from multiflow.worlds.shapes.models import MAX_TOKENS
from multiflow.worlds.shapes.warmup import patch_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from multiflow.worlds.shapes.pretrain import PretrainSettings

CURRICULUM = ((0.04, 1), (0.10, 2), (1.0, 4))  # until this share of the joint steps: at most so many objects


def pictures(scenes: list[Scene], size: int) -> Tensor:
    """Render scenes as normalised pixels ``(scenes, 3, size, size)``."""
    return torch.from_numpy(to_pixels([render(scene, size) for scene in scenes], size))


def vision_batch(settings: PretrainSettings, position: int) -> Batch:
    """Return pictures and the labels of their patches."""
    count, side = settings.vision_batch_size, settings.image_size
    scenes = make_scenes("train", count, seed=settings.seed, start=position * count)
    classes, pixels = patch_labels(scenes, side, settings.patch_size)
    labels = {"labels": torch.from_numpy(classes), "pixels": torch.from_numpy(pixels)}
    return {"pixel_values": pictures(scenes, side), **labels}


def joint_batch(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase, position: int) -> Batch:
    """Return a batch of pairs or, for X-VLM every ``region_every`` th time, of regions.

    A region batch has half as many pictures, with up to two regions each. BLIP's texts end with [SEP].
    """
    done = position / settings.steps
    most = next((objects for until, objects in CURRICULUM if done < until), CURRICULUM[-1][1])
    start = settings.vision_steps * settings.vision_batch_size + position * settings.batch_size
    options: dict[str, Any] = {"tokenizer": tokenizer, "image_size": settings.image_size, "max_length": MAX_TOKENS}
    options |= {"seed": settings.seed, "position": position}
    every = settings.region_every if settings.family == "xvlm" else 0
    if every and position % every == every - 1:
        scenes = make_scenes("train", settings.batch_size // 2, seed=settings.seed, start=start, max_objects=most)
        images = [render(scene, settings.image_size) for scene in scenes]
        named = [[(text, _pixel_box(box, settings.image_size)) for text, box in regions(scene)[:2]] for scene in scenes]
        return collate_regions(images, named, patch_size=settings.patch_size, **options)
    scenes = make_scenes("train", settings.batch_size, seed=settings.seed, start=start, max_objects=most)
    images = [render(scene, settings.image_size) for scene in scenes]
    if settings.family == "blip":
        options |= {"mlm": False, "end": True}
    return collate_pairs(images, [describe(scene, 1)[0] for scene in scenes], **options)


def _pixel_box(box: tuple[float, float, float, float], size: int) -> tuple[float, float, float, float]:
    cx, cy, width, height = (size * x for x in box)
    return cx - width / 2, cy - height / 2, width, height
