"""Shapes, the synthetic image-text world: scenes, pictures, captions, regions, questions, files.

Here live the world and the factory of the bundled models (`models`, `warmup`, `pretrain`, `release`). Importing the
package does not import the factory.
"""

from multiflow.worlds.shapes.language import VOCABULARY, Question, describe, questions, regions
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

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FILLS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "VOCABULARY",
    "Object",
    "Question",
    "Scene",
    "describe",
    "make_scenes",
    "questions",
    "regions",
    "render",
    "split_of",
    "write",
]
