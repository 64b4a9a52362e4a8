"""Hyper-parameters of fine-tuning: ``paper``, those of the published runs, and ``shapes``, for minutes on a laptop.

What the publications leave open is the same in all of them: gradients are clipped at a norm of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from multiflow.base.errors import MultiflowError, unknown

Schedule: TypeAlias = Literal["cosine", "linear"]

FAMILY_OF = {"xvlm": "xvlm", "blip": "blip", "vit": "dino", "dinov2": "dino"}
"""Beginning of ``config.model_type`` -> the family whose hyper-parameters are taken."""


@dataclass(frozen=True)
class Preset:
    """How a family is fine-tuned for a task.

    Args:
        lr: highest learning rate.
        batch_size: samples a step, those of all processes and accumulated batches together.
        epochs: how often the training data are gone through, unless ``steps`` says how many steps to take.
        steps: optimizer steps.
        weight_decay: of matrices.
        schedule: how the learning rate falls.
        warmup: share of the steps during which it rises.
        betas: AdamW's.
        new_lr: factor on the learning rate of new layers.
        image_size: side of the images in pixels; None = the pretrained model's.
        augment: whether training images are augmented.
        val_split: split on which the best checkpoint is chosen.
        val_limit: items of it at most.
        evaluations: how often a run of ``steps`` is evaluated; one of epochs is after each.
        options: of the task model, see `mf.task_model`.
        evaluate: options of the evaluation.
    """

    lr: float
    batch_size: int
    epochs: int = 1
    steps: int | None = None
    weight_decay: float = 0.01
    schedule: Schedule = "linear"
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    new_lr: float = 1.0
    image_size: int | None = 384
    augment: bool = True
    val_split: str = "val"
    val_limit: int | None = None
    evaluations: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)


BLIP: dict[str, Any] = {"weight_decay": 0.05, "schedule": "cosine", "warmup": 0.0, "betas": (0.9, 0.999)}
SHAPES: dict[str, Any] = {"image_size": None, "augment": False, "val_limit": 200}
CIDER: dict[str, Any] = {"metrics": ("CIDEr",)}
MOMENTUM: dict[str, Any] = {"queue_size": 57600, "alpha": 0.4, "momentum": 0.995}

PRESETS: Mapping[str, Mapping[tuple[str, str], Preset]] = {
    "paper": {
        ("xvlm", "retrieval"): Preset(3e-5, 128, 10, new_lr=2.0),
        ("xvlm", "captioning"): Preset(1e-5, 256, 5, options={"label_smoothing": 0.1}, evaluate=CIDER),
        ("xvlm", "vqa"): Preset(5e-5, 256, 10, new_lr=2.0),
        ("blip", "retrieval"): Preset(1e-5, 128, 6, **BLIP, options=MOMENTUM),
        ("blip", "captioning"): Preset(1e-5, 256, 5, **BLIP, evaluate=CIDER),
        ("blip", "vqa"): Preset(2e-5, 256, 10, **BLIP, options={"drop_path": 0.1}),
        ("dino", "classification"): Preset(
            1e-5, 32, 10, None, 0.0, "cosine", betas=(0.9, 0.999), image_size=None, val_split="test"
        ),
    },
    "shapes": {
        ("xvlm", "retrieval"): Preset(2e-4, 32, steps=400, **SHAPES, new_lr=2.0, evaluate={"k_test": 16}),
        ("xvlm", "captioning"): Preset(3e-4, 32, steps=400, **SHAPES, evaluate=CIDER),
        ("xvlm", "vqa"): Preset(3e-4, 64, steps=500, **SHAPES, new_lr=2.0, evaluate={"top": 16}),
        ("blip", "retrieval"): Preset(
            2e-4, 32, steps=400, **SHAPES, options={"queue_size": 1024, "alpha": 0.4}, evaluate={"k_test": 16}
        ),
        ("blip", "captioning"): Preset(3e-4, 32, steps=400, **SHAPES, evaluate=CIDER),
        ("blip", "vqa"): Preset(3e-4, 64, steps=500, **SHAPES, options={"drop_path": 0.0}, evaluate={"top": 16}),
        ("dino", "classification"): Preset(
            1e-3, 64, steps=300, **{**SHAPES, "val_limit": None}, val_split="test", betas=(0.9, 0.999)
        ),
    },
}


def find_preset(name: str, model: Any, task: str) -> Preset:
    """Return the hyper-parameters of a preset for the family of a model and a task.

    Raises:
        MultiflowError: there is no such preset, or it has nothing for such models.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    family = FAMILY_OF.get(model_type.partition("-")[0], "")
    if (family, task) not in PRESETS[name]:
        known = ", ".join(f"{of} for {what}" for of, what in PRESETS[name])
        raise MultiflowError(
            f"preset '{name}' has no hyper-parameters to fine-tune a model of type '{model_type}' for task '{task}'; "
            f"it has those of {known}"
        )
    return PRESETS[name][family, task]
