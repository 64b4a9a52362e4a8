"""Shapes, the synthetic image-text world: scenes, pictures, captions, regions, questions, files."""

from multiflow.data.shapes.language import describe
from multiflow.data.shapes.questions import Question, questions
from multiflow.data.shapes.regions import regions
from multiflow.data.shapes.render import render
from multiflow.data.shapes.sample import make_scenes, split_of
from multiflow.data.shapes.scene import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, STYLES, Object, Scene
from multiflow.data.shapes.vocabulary import VOCABULARY
from multiflow.data.shapes.write import write

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
