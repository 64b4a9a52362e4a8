"""A task from outside the package, in one folder: is the digit in an image even or odd?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from multiflow.families import Preset
from multiflow.families.vit.adapter import classification
from multiflow.tasks.task import TASKS, Task

from .metric import accuracy_of_each

IMAGES = TASKS["classification"]
NAMES = ("even", "odd")


def open_digits(source: Any, split: str | None, **options: Any) -> Any:
    data = IMAGES.open(source, split, **options)
    return replace(data, texts=tuple((NAMES[int(digit) % 2],) for (digit,) in data.texts), choices=NAMES)


TASKS.add(
    "parity",
    Task(
        name="parity",
        open=open_digits,
        options=lambda data: {"classes": len(data.choices)},
        inputs=IMAGES.inputs,
        batch=IMAGES.batch,
        loss=IMAGES.loss,
        evaluate=partial(accuracy_of_each, IMAGES.evaluate, NAMES),
        main="mean of even and odd",
        best="mean of even and odd",
        models=("vit",),
        builders={"vit": classification},
        presets={"quick": Preset(1e-3, 8, steps=30, image_size=None, augment=False, val_split="test", val_limit=60)},
        finish=IMAGES.finish,
    ),
)
