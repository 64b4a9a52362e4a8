"""Shapes, the synthetic image-text world: scenes, pictures, captions, regions, questions, files.

Here live the world and the factory of the bundled models (`models`, `warmup`, `pretrain`, `release`). Importing the
package does not import the factory.
"""

import numpy as np

from multiflow.worlds.shapes.language import VOCABULARY, SceneQuestion, describe, questions, regions
from multiflow.worlds.shapes.render import render
from multiflow.worlds.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    SHAPES,
    SIZES,
    STYLES,
    Object,
    Scene,
    make_scenes,
    split_of,
)
from multiflow.worlds.shapes.write import write


def draw_pairs(count: int, size: int, seed: int = 0) -> list[tuple[np.ndarray, str]]:
    """Return pictures of training scenes, ``size`` pixels wide, each with a caption."""
    return [(render(scene, size), describe(scene, 1)[0]) for scene in make_scenes("train", count, seed=seed)]


__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FILLS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "VOCABULARY",
    "Object",
    "Scene",
    "SceneQuestion",
    "describe",
    "draw_pairs",
    "make_scenes",
    "questions",
    "regions",
    "render",
    "split_of",
    "write",
]
