"""Retrieval: find the captions of an image, and the image of a caption."""

from multiflow.tasks.retrieval.task import TASK
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, TASK)
