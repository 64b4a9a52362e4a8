"""Retrieval: find the captions of an image, and the image of a caption."""

from dataclasses import replace

from multiflow.tasks.retrieval.dual_encoder import DUAL_ENCODER
from multiflow.tasks.retrieval.task import TASK
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, replace(TASK, by_processor=DUAL_ENCODER))
