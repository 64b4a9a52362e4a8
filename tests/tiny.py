"""Tiny models of the known families on Shapes, with random weights: their settings, task models and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from multiflow.data import to_pixels
from multiflow.tasks.task_model import task_model
from multiflow.worlds.shapes import Scene, render
from multiflow.worlds.shapes.models import Pretraining, shapes_model, shapes_tokenizer

SMALL = Pretraining(
    image_size=24,
    patch_size=8,
    width=16,
    heads=2,
    vision_layers=2,
    text_layers=1,
    fusion_layers=1,
    vision_mlp=32,
    text_mlp=32,
    embed_dim=8,
    vision_steps=4,
    vision_batch_size=6,
    steps=8,
    batch_size=6,
    region_every=4,
    precision="fp32",
    checkpoint_every=3,
    test_scenes=12,
)
SMALL_BLIP = replace(SMALL, family="blip")
FAMILIES = {"xvlm": SMALL, "blip": SMALL_BLIP}
TOKENIZER = shapes_tokenizer("blip")  # X-VLM's, and two tokens more


@cache
def tiny(family: str, task: str):
    """Return a task model with random weights, the same at every call: do not train it."""
    return task_model(shapes_model(FAMILIES[family], len(TOKENIZER)), task)


def pictures(scenes: Sequence[Scene], size: int) -> Tensor:
    """Render scenes as normalised pixels (scenes, 3, size, size)."""
    return torch.from_numpy(to_pixels([render(scene, size) for scene in scenes], size))
