"""Visual question answering: the likeliest of a list of answers, by the official accuracy."""

from dataclasses import replace

from multiflow.tasks.task import TASKS
from multiflow.tasks.vqa.open_ended import OPEN_ENDED
from multiflow.tasks.vqa.task import TASK

TASKS.add(TASK.name, replace(TASK, by_processor=OPEN_ENDED))
