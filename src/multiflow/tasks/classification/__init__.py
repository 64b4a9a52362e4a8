"""Classification: which class an image shows, by top-1 accuracy."""

from multiflow.tasks.classification.task import TASK
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, TASK)
