"""Shapes, the synthetic image-text world: scenes, pictures, captions, regions, questions, files."""

from multiflow.worlds.shapes.language import describe
from multiflow.worlds.shapes.questions import Question, questions
from multiflow.worlds.shapes.regions import regions
from multiflow.worlds.shapes.render import render
from multiflow.worlds.shapes.sample import make_scenes, split_of
from multiflow.worlds.shapes.scene import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, STYLES, Object, Scene
from multiflow.worlds.shapes.vocabulary import VOCABULARY
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
