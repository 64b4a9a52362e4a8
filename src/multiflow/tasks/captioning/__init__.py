"""Captioning: a sentence about an image, written by beam search and compared with the sentences people wrote."""

from multiflow.tasks.captioning.task import TASK
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, TASK)
