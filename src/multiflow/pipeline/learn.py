"""Running a learner: a pruner that trains scores through the masks they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiflow.adapters import parts
from multiflow.calibration import (
    Checkpoint,
    Cycle,
    buffers_restored,
    differentiable,
    keep_up,
    loss_of,
    turns,
    weights_replaced,
)
from multiflow.masks import unpack
from multiflow.pipeline.choose import Packed, choose
from multiflow.pipeline.job import Job
from multiflow.pipeline.measure import identity
from multiflow.ranks import world
from multiflow.result import check_scores, short


def prune_by_learning(job: Job) -> Iterator[tuple[Packed, None]]:
    """Yield for each sparsity the packed masks; the user's weights are never written to."""
    settings = identity(job.adapter, job.layout, job.weights, **job.record(0)) if job.checkpoint else {}
    for sparsity in job.sparsities:
        with (
            buffers_restored(job.model),
            weights_replaced(job.weights.parameters),
            differentiable(job.model, job.weights.parameters),
            torch.random.fork_rng(_devices(job)),
        ):
            packed = _learn(job, sparsity, settings)
        yield packed, None
    if job.checkpoint:
        for sparsity in job.sparsities:
            job.checkpoint.part(short(sparsity)).delete()


def _learn(job: Job, sparsity: float, settings: Mapping[str, Any]) -> Packed:
    place = job.checkpoint.part(short(sparsity)) if job.checkpoint else None
    feed = _Feed(job, Cycle(job.batches, world()))  # type: ignore[arg-type]

    def choose_by(scores: Mapping[str, Tensor]) -> Packed:
        checked = {n: check_scores(job.pruner, n, scores.get(n), layer.shape) for n, layer in job.layout.items()}
        return choose(job, checked, [sparsity])[0]

    def select(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        packed = choose_by(scores)
        return {layer.name: unpack(packed[layer.name], layer.size).view(layer.shape) for layer in job.layout.layers}

    scores = job.pruner.call(
        job.model,
        job.weights.parameters,
        feed.loss,
        select,
        sparsity=sparsity,
        seed=job.seed,
        checkpoint=LearnerCheckpoint(place, settings, feed) if place else None,
        progress=job.progress_of(sparsity),
        **job.own_hyper,
    )
    return choose_by(scores)


@dataclass
class _Feed:
    """The loss of the model on one batch after another; of several processes each has one of its own."""

    job: Job
    cycle: Cycle

    def loss(self) -> Tensor:
        """Return the loss on the next batch, with its graph; the mean over all processes is that of their batches."""
        job, before = self.job, self.cycle.taken
        device = next(iter(job.weights.parameters.values())).device
        value = torch.zeros((), device=device, requires_grad=True)  # of a process without a batch
        for turn in turns(self.cycle.take(), split=parts):
            for number, batch in turn.own:
                value = loss_of(job.model, batch, before + number, job.adapter.loss, device)  # type: ignore[arg-type]
            keep_up(job.model, turn, job.adapter.idle)
            value = value * (world() / max(turn.takers, 1))
        return value


@dataclass(frozen=True)
class LearnerCheckpoint:
    """Where a learner saves itself; it holds scores, the optimizer's moments, the buffers and the batches taken."""

    place: Checkpoint
    settings: Mapping[str, Any]
    feed: _Feed

    def save(self, step: int, scores: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write the state after a step, if it is time to."""
        if step % self.place.every:
            return
        tensors = {f"score/{name}": value for name, value in scores.items()}
        tensors |= {f"buffer/{name}": value for name, value in self.feed.job.model.named_buffers()}
        for name, value in scores.items():
            tensors |= {f"{key}/{name}": torch.as_tensor(moment) for key, moment in optimizer.state[value].items()}
        self.place.save_state(tensors, self.settings, {"step": step, "taken": self.feed.cycle.taken})

    def resume(self, scores: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Put scores, optimizer, buffers and batches where they were; return the number of steps done."""
        found = self.place.load_state(self.settings)
        if found is None:
            return 0
        tensors, facts = found
        with torch.no_grad():
            for key, tensor in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "score":
                    scores[name].copy_(tensor)
                elif kind == "buffer":
                    self.feed.job.model.get_buffer(name).copy_(tensor)
                else:
                    device = scores[name].device if tensor.ndim else tensor.device
                    optimizer.state[scores[name]][kind] = tensor.to(device)
        self.feed.cycle = Cycle(self.feed.job.batches, world(), facts["taken"])  # type: ignore[arg-type]
        return int(facts["step"])


def _devices(job: Job) -> list[torch.device]:
    device = next(iter(job.weights.parameters.values())).device
    return [device] if device.type == "cuda" else []
