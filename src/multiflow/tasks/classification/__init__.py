"""Classification: which class an image shows, by top-1 accuracy."""

from dataclasses import replace

from multiflow.tasks.classification.task import TASK
from multiflow.tasks.classification.zero_shot import ZERO_SHOT
from multiflow.tasks.task import TASKS

TASKS.add(TASK.name, replace(TASK, by_processor=ZERO_SHOT))
