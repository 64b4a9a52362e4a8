"""What the training loop steps with: AdamW or SGD with momentum, groups of parameters, and the learning rate.

AdamW (Loshchilov and Hutter, arXiv 1711.05101). The learning rate rises linearly during the warm-up and then falls to
zero, along a cosine or a line.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from multiflow.training.settings import TrainSettings

MOMENTUM = 0.9


def make_optimizer(model: nn.Module, settings: TrainSettings, new: Collection[str] = ()) -> torch.optim.Optimizer:
    """Return the optimizer of a run for the parameters of a model; those named in ``new`` learn ``new_lr`` faster."""
    groups = parameter_groups(model, settings.weight_decay, new, settings.new_lr)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, MOMENTUM, foreach=False if settings.shard else None)
    if settings.shard:  # weights that are split and scalars that are not cannot be stepped in one go
        return torch.optim.AdamW(groups, settings.lr, settings.betas, foreach=False)
    return torch.optim.AdamW(groups, settings.lr, settings.betas, fused=True)


def parameter_groups(
    model: nn.Module, weight_decay: float, new: Collection[str] = (), new_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay (two dimensions or more) and those that do not.

    Those named in ``new`` are two groups of their own, whose learning rate is to be multiplied by ``scale``.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for is_new, scale in ((False, 1.0), (True, new_lr)) if new else ((False, 1.0),):
        of = [p for name, p in trainable if (name in new) == is_new]
        groups += [
            {"params": [p for p in of if p.ndim > 1], "weight_decay": weight_decay, "scale": scale},
            {"params": [p for p in of if p.ndim <= 1], "weight_decay": 0.0, "scale": scale},
        ]
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then down to zero just after the last step.

    >>> settings = TrainSettings(steps=4, lr=1.0, warmup=0.5, schedule="linear")
    >>> [round(learning_rate(settings, step), 2) for step in (1, 2, 3, 4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    warmup = round(settings.warmup * settings.steps)
    if step <= warmup:
        return settings.lr * step / warmup
    done = (step - warmup) / (settings.steps - warmup + 1)
    return settings.lr * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done)
