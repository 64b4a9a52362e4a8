"""What is pruned and measured: a model of others, calibration data, and figures item by item."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from multiflow import Adapter


@dataclass(frozen=True)
class Items:
    """A figure, item by item: their mean is the figure. Of a ratio of sums, items count by their share of it."""

    each: Sequence[float]
    more: Mapping[str, float] = field(default_factory=dict)  # other numbers of the same items, such as a loss


@dataclass(frozen=True)
class World:
    """A model with what it is pruned and measured on."""

    title: str
    model: nn.Module  # dense, in evaluation mode
    figures: Mapping[str, str]  # name -> metric; higher is better, 100 is all
    batches: Callable[[int], Sequence[Any]]  # seed -> calibration batches
    evaluate: Callable[[nn.Module], Mapping[str, Items]]  # -> an entry for each figure
    adapter: Adapter | None = None  # where the model's own is not what is wanted
    facts: Mapping[str, Any] = field(default_factory=dict)  # what a report may say of it


def hash_model(model: nn.Module) -> str:
    """Hash the names and bytes of all weights to sixteen hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    return digest.hexdigest()[:16]
