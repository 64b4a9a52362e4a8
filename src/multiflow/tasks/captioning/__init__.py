"""Captioning: a sentence about an image, written by beam search and compared with the sentences people wrote."""

from dataclasses import replace

from multiflow.tasks.captioning.generative import GENERATIVE
from multiflow.tasks.captioning.task import TASK
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, replace(TASK, by_processor=GENERATIVE))
