"""Transcription: what a speech-to-text model hears, by its word error rate."""

from multiflow.tasks.task import TASKS
from multiflow.tasks.transcription.task import TASK

TASKS.add(TASK.name, TASK)
