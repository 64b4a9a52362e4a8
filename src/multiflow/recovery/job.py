"""What all ways of recovery work on: the dense model, its sparse copy, and the batches of this process in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, parts
from multiflow.base.errors import MultiflowError
from multiflow.base.steps import Step
from multiflow.base.types import Layout
from multiflow.calibration import Checkpoint, iterate, turns
from multiflow.calibration.reach import tensors_in
from multiflow.masks import Masks
from multiflow.recovery.parts import Part, blocks_of_parts


@dataclass(frozen=True)
class Data:
    """Calibration batches.

    Args:
        own: number of a batch (from 1) -> its parts, of the batches that this process takes.
        count: the batches of all processes.
    """

    own: Mapping[int, Sequence[Any]]
    count: int


@dataclass(frozen=True)
class RecoveryJob:
    """A recovery.

    Args:
        teacher: the dense model, which stays as it is.
        student: a copy of it with the masks applied, in float32 or better, which changes.
        masks: which weights are kept.
        adapter: how both are run.
        data: what they are run on.
        parts: the sub-blocks of the model.
        seed: of whatever is random.
        identity: what a checkpoint belongs to.
        checkpoint: where a killed run goes on.
        progress: told of every step.
    """

    teacher: nn.Module
    student: nn.Module
    masks: Masks
    adapter: Adapter
    data: Data
    parts: Sequence[Part]
    seed: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    progress: Step | None = None

    @property
    def layout(self) -> Layout:
        """The prunable layers."""
        return self.masks.layout

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.student.parameters()).device

    @property
    def blocks(self) -> dict[str, str]:
        """Path of every block -> a layer in it, whose stream says which tokens are real."""
        return blocks_of_parts(self.parts)

    def masks_of(self, layers: Sequence[str]) -> Masks:
        """Return the masks of some layers."""
        layout = Layout(tuple(self.layout[name] for name in layers))
        return Masks(layout, {name: self.masks.packed[name] for name in layers}, settings={})

    def rms(self, layers: Sequence[str]) -> float:
        """Return the root mean square of the kept weights of some layers, the unit of learning rates."""
        total, count = 0.0, 0
        for name in layers:
            weight: Tensor = self.masks.find_weights(self.student)[name][0].detach()
            total += float(weight.double().square().sum())
            count += self.layout[name].size - self.masks.dropped(name)
        return (total / count) ** 0.5 if total else 1e-3


def gather(batches: Iterable[Any] | None) -> Data:
    """Take the batches into memory, each process its own.

    Raises:
        MultiflowError: there are none, or only one: some are held out.
    """
    if batches is None:
        raise MultiflowError(
            "recovery needs calibration data; pass {batches=}, an iterable of batches", field="batches"
        )
    own: dict[int, Sequence[Any]] = {}
    done = 0
    for turn in turns(iterate(batches)):
        for number, batch in turn.own:
            own[number] = parts(batch)
            sizes = [len(value) for value in tensors_in(batch) if value.dim()]
            if sizes and not any(sizes):
                raise MultiflowError(
                    f"batch {number} of {{batches}} is empty: its tensors have size 0; leave it out", field="batches"
                )
        done = turn.done
    if done < 2:
        raise MultiflowError(
            "recovery was given one batch, and holds some of them out to know when to end; give two or more {batches}, "
            "smaller ones if need be",
            field="batches",
        )
    return Data(own, done)
