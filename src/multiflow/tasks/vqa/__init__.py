"""Visual question answering: the likeliest of a list of answers, by the official accuracy."""

from multiflow.tasks.task import TASKS
from multiflow.tasks.vqa.task import TASK

TASKS.add(TASK.name, TASK)
