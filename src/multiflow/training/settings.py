"""What a fine-tuning run is given, and the plan that becomes of it: a preset, changed where something is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from tyro.conf import arg

from multiflow.base.errors import MultiflowError
from multiflow.base.ranks import world
from multiflow.families.presets import Preset
from multiflow.tasks.task import Task
from multiflow.training.loop import Optimizer, Precision, TrainSettings
from multiflow.training.processes import check_processes

PRESET = "(default: the preset's)"
OwnName: TypeAlias = Annotated[str | None, arg(metavar="NAME", help_behavior_hint=PRESET)]
OwnCount: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint=PRESET)]
Name: TypeAlias = Annotated[str, arg(metavar="NAME")]
Count: TypeAlias = Annotated[int, arg(metavar="N")]
Flag: TypeAlias = Annotated[bool, arg(help_behavior_hint="")]
OwnNumber: TypeAlias = Annotated[float | None, arg(metavar="X", help_behavior_hint=PRESET)]


@dataclass(frozen=True)
class FinetuneSettings:
    """What to train on, and how; what is not given is the preset's.

    Args:
        data: file or folder of the data set; docs/data.md lists the layouts
        images: folder of the images that the data name
        skip_missing: leave out what is missing or has no text, instead of stopping
        limit: items at most of the training data and of the validation data, to try a run out
        train_split: split to train on; train+val takes both
        val_split: split on which the best checkpoint is chosen
        preset: paper, or shapes for minutes on a laptop
        image_size: side of the images in pixels; 0 is the pretrained model's
        mask_decoder: X-VLM for vqa: whether the answer decoder takes the mask of the fusion layers it starts from
        epochs: how often the training data are gone through
        steps: optimizer steps, instead of epochs
        batch_size: samples a step, those of all processes and accumulated batches together
        accumulate: batches into which each process cuts its share of a step
        lr: highest learning rate
        weight_decay: of matrices
        warmup: share of the steps during which the learning rate rises
        optimizer: adamw, or sgd with momentum
        evaluate_every: steps between two evaluations
        shard: split the model among the processes (FSDP)
        precision: auto is bfloat16 where the device is faster in it; weights stay float32
        device: auto (CUDA if there is any), cpu, cuda or cuda:N
        seed: of new weights, order, augmentation, dropout and negatives
        checkpoint_every: steps between checkpoints
        wandb: project of Weights & Biases that gets the metrics too; TensorBoard's files are written anyway
    """

    data: Annotated[str, arg(metavar="DIR")]
    images: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: beside the data)")] = None
    skip_missing: Flag = False
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    train_split: Name = "train"
    val_split: OwnName = None
    preset: Name = "paper"
    image_size: OwnCount = None
    mask_decoder: Annotated[
        bool,
        arg(
            help="X-VLM for vqa: leave the answer decoder dense, which starts from fusion layers", help_behavior_hint=""
        ),
    ] = True
    epochs: OwnCount = None
    steps: OwnCount = None
    batch_size: OwnCount = None
    accumulate: Count = 1
    lr: OwnNumber = None
    weight_decay: OwnNumber = None
    warmup: OwnNumber = None
    optimizer: Optimizer = "adamw"
    evaluate_every: OwnCount = None
    shard: Flag = False
    precision: Precision = "auto"
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    seed: Annotated[int, arg(metavar="S")] = 0
    checkpoint_every: Count = 500
    wandb: Annotated[str | None, arg(metavar="PROJECT", help_behavior_hint="")] = None


def adjust(preset: Preset, settings: FinetuneSettings) -> Preset:
    """Put what was given in the place of what a preset says."""
    names = ("val_split", "epochs", "batch_size", "lr", "weight_decay", "warmup")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if settings.epochs is not None and settings.steps is not None:
        raise MultiflowError(f"epochs {settings.epochs} and steps {settings.steps} were given; give one of them")
    if settings.epochs is not None or settings.steps is not None:
        given["steps"] = settings.steps
    if settings.image_size is not None:
        given["image_size"] = settings.image_size or None
    for name in ("epochs", "batch_size"):
        if given.get(name, 1) < 1:
            raise MultiflowError(f"{name} {given[name]} was given; expected at least 1")
    return replace(preset, **given)


def plan_of(kind: Task, data: Any, preset: Preset, settings: FinetuneSettings) -> TrainSettings:
    """Return how the training loop is to run: a preset, cut to the data and the processes."""
    if settings.shard:
        check_processes()
    parts = settings.accumulate * world()
    if settings.accumulate < 1 or preset.batch_size % parts:
        raise MultiflowError(
            f"batch_size {preset.batch_size} cannot be cut into {parts} equal parts ({world()} processes, accumulate "
            f"{settings.accumulate}); give a multiple"
        )
    epoch = max(1, kind.epoch(data) // preset.batch_size)
    steps = preset.epochs * epoch if preset.steps is None else preset.steps
    every = epoch if preset.steps is None else max(1, steps // preset.evaluations)
    return TrainSettings(
        steps,
        preset.lr,
        preset.weight_decay,
        preset.betas,
        preset.warmup,
        preset.schedule,
        optimizer=settings.optimizer,
        new_lr=preset.new_lr,
        accumulate=settings.accumulate,
        shard=settings.shard,
        precision=settings.precision,
        seed=settings.seed,
        checkpoint_every=settings.checkpoint_every,
        wandb=settings.wandb,
        evaluate_every=settings.evaluate_every or every,
    )
