"""Tiny task models, shared by the tests of the tasks."""

from __future__ import annotations

from functools import cache

from multiflow.tasks.task_model import task_model
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tasks.small import FAMILIES

TOKENIZER = shapes_tokenizer("blip")  # X-VLM's, and two tokens more


@cache
def tiny(family: str, task: str):
    """Return a task model with random weights, the same at every call: do not train it."""
    return task_model(shapes_model(FAMILIES[family], len(TOKENIZER)), task)
