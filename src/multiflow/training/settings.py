"""How to train: the settings of the one loop, those of a fine-tuning run, and the plan that becomes of the latter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from typing import Annotated, Any, Literal, TypeAlias, get_args

from torch import nn
from tyro.conf import arg

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.parallel import world
from multiflow.families.family import Preset, Schedule
from multiflow.tasks.task import TASKS, Task
from multiflow.training.processes import check_processes

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
Optimizer: TypeAlias = Literal["adamw", "sgd"]
PRESET = "(default: the preset's)"
OwnName: TypeAlias = Annotated[str | None, arg(metavar="NAME", help_behavior_hint=PRESET)]
OwnCount: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint=PRESET)]
Name: TypeAlias = Annotated[str, arg(metavar="NAME")]
Count: TypeAlias = Annotated[int, arg(metavar="N")]
Switch: TypeAlias = Annotated[bool, arg(help_behavior_hint="")]
OwnNumber: TypeAlias = Annotated[float | None, arg(metavar="X", help_behavior_hint=PRESET)]


@dataclass(frozen=True)
class TrainSettings:
    """How to train; equal settings, model and data give equal weights.

    Args:
        steps: optimizer steps.
        lr: highest learning rate.
        weight_decay: AdamW's decay, applied to matrices and embeddings but not to norms, biases and scalars.
        betas: AdamW's decay rates of the two moments.
        warmup: share of the steps during which the learning rate rises.
        schedule: how it falls to zero afterwards, ``cosine`` or ``linear``.
        clip: largest norm of the gradient; a larger one is scaled down to it.
        optimizer: ``adamw``, or ``sgd`` with momentum.
        new_lr: factor on the learning rate of parameters that are new.
        accumulate: batches whose gradients are averaged in a step, in each process.
        shard: split weights, gradients and the optimizer's state among the processes (FSDP).
        precision: ``fp32``, ``bf16`` (weights stay float32), or ``auto``: bf16 where the device computes it faster.
        seed: seeds dropout and whatever else the loss draws.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between two evaluations; there is one after the last step too.
        log_every: steps between two lines of metrics.
        prefetch: batches made ahead of time in the background.
        wandb: project of Weights & Biases that gets the metrics too.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    schedule: Schedule = "cosine"
    clip: float = 1.0
    optimizer: Optimizer = "adamw"
    new_lr: float = 1.0
    accumulate: int = 1
    shard: bool = False
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 500
    log_every: int = 20
    prefetch: int = 4
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "evaluate_every", "log_every", "prefetch"):
            if (value := getattr(self, name)) < 1:
                raise MultiflowError(f"{name} {value} was given; expected at least 1")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and self.clip > 0):
            raise MultiflowError(
                f"lr {self.lr}, warmup {self.warmup} and clip {self.clip} were given; expected lr and clip "
                f"above 0 and a warmup in [0, 1)"
            )
        for kind, known in (("schedule", Schedule), ("precision", Precision), ("optimizer", Optimizer)):
            if getattr(self, kind) not in get_args(known):
                raise unknown(kind, getattr(self, kind), get_args(known))


@dataclass(frozen=True)
class Finetuning:
    """What to train on, and how; what is not given is the preset's.

    Args:
        data: file or folder of the data set; docs/data.md lists the layouts
        images: folder of the images that the data name
        image_column: column or key of the data that holds the images
        text_column: column or key of the data that holds the texts
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
    image_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: told by its name)")] = None
    text_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: told by its name)")] = None
    skip_missing: Switch = False
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
    shard: Switch = False
    precision: Precision = "auto"
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    seed: Annotated[int, arg(metavar="S")] = 0
    checkpoint_every: Count = 500
    wandb: Annotated[str | None, arg(metavar="PROJECT", help_behavior_hint="")] = None


@dataclass(frozen=True)
class FinetunePlan:
    """All that decides how a task model is fine-tuned: what was given, in the place of what the preset says.

    Args:
        task: the task.
        given: the settings, as they were given.
        preset: of the model's family and the task, changed where something was given.
    """

    task: Task
    given: Finetuning
    preset: Preset

    def train_settings(self, data: Any) -> TrainSettings:
        given, preset = self.given, self.preset
        epoch = max(1, self.task.epoch(data) // preset.batch_size)
        steps = preset.epochs * epoch if preset.steps is None else preset.steps
        every = epoch if preset.steps is None else max(1, steps // preset.evaluations)
        return TrainSettings(
            steps,
            preset.lr,
            preset.weight_decay,
            preset.betas,
            preset.warmup,
            preset.schedule,
            optimizer=given.optimizer,
            new_lr=preset.new_lr,
            accumulate=given.accumulate,
            shard=given.shard,
            precision=given.precision,
            seed=given.seed,
            checkpoint_every=given.checkpoint_every,
            evaluate_every=given.evaluate_every or every,
            wandb=given.wandb,
        )


def plan_finetuning(task: str, model: nn.Module, given: Finetuning) -> FinetunePlan:
    """Check settings, and put them in the place of what their preset says.

    Raises:
        MultiflowError: there is no such task or preset, the model cannot do the task, or the settings do not fit.
    """
    # 1. the task, its model and its preset
    kind = TASKS[task].of(model)
    builder = kind.builder(model)
    preset = adjust(kind.preset(given.preset, model), given)
    if not given.mask_decoder and "mask_decoder" not in signature(builder).parameters:
        raise MultiflowError(
            f"mask_decoder=False (--no-mask-decoder) was given, and for task '{task}' the model "
            f"'{type(model).__name__}' gets no decoder that starts from masked layers; leave it out"
        )
    # 2. the processes
    if given.shard:
        check_processes()
    parts = given.accumulate * world()
    if given.accumulate < 1 or preset.batch_size % parts:
        raise MultiflowError(
            f"batch_size {preset.batch_size} cannot be cut into {parts} equal parts ({world()} processes, accumulate "
            f"{given.accumulate}); give a multiple"
        )
    return FinetunePlan(kind, given, preset)


def adjust(preset: Preset, settings: Finetuning) -> Preset:
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
