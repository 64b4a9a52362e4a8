"""Running a learner: a pruner that trains scores through the masks they make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiflow.base.adapter import parts
from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import in_parallel
from multiflow.base.ranks import world
from multiflow.calibration import (
    Checkpoint,
    Cycle,
    buffers_restored,
    differentiable,
    keep_up,
    loss_of,
    put_buffers,
    turns,
    weights_replaced,
)
from multiflow.masks import hash_weight, pack
from multiflow.pruning.choose import Packed, Pruned, choose_masks
from multiflow.pruning.job import Job
from multiflow.pruning.measure import identity
from multiflow.pruning.result import check_scores, short
from multiflow.pruning.returned import check_named

SLOW = 1.0  # seconds to write a checkpoint from which on it is written less often
SHARE = 0.1  # of the time, at most, that slow ones take


def prune_by_learning(job: Job) -> Iterator[Pruned]:
    """Yield for each sparsity the packed masks; a learner that writes to the user's weights is an error."""
    settings = identity(job.adapter, job.layout, job.weights, **job.record(0)) if job.checkpoint else {}
    before = _hashes(job)
    for sparsity in job.sparsities:
        with (
            buffers_restored(job.model),
            weights_replaced(job.weights.parameters),
            differentiable(job.model, job.weights.parameters),
            torch.random.fork_rng(_devices(job)),
        ):
            packed, batches = _learn(job, sparsity, settings)
        if changed := [name for name, now in _hashes(job).items() if now != before[name]]:
            raise MultiflowError(
                f"pruner '{job.pruner.name}' changed the weight of layer '{changed[0]}' in place; let it put other "
                "memory there (weight.data = weight * mask, not weight.mul_(mask)), and load the model anew"
            )
        yield Pruned(packed, None, batches)
    if job.checkpoint:
        for sparsity in job.sparsities:
            job.checkpoint.part(short(sparsity)).delete()


def _hashes(job: Job) -> dict[str, str]:
    """Layer name -> hash of its weight: a learner may point ``weight.data`` elsewhere, so versions say nothing."""
    return dict(zip(job.layout, in_parallel(hash_weight, job.weights.parameters.values()), strict=True))


def _learn(job: Job, sparsity: float, settings: Mapping[str, Any]) -> tuple[Packed, int]:
    """Return the packed masks of a sparsity, and how many batches were taken."""
    place = job.checkpoint.part(short(sparsity)) if job.checkpoint else None
    feed = _Feed(job, Cycle(job.batches, world()))  # type: ignore[arg-type]

    def select(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = check_named(job.pruner, "scores", scores)
        checked = {n: check_scores(job.pruner, n, given.get(n), layer.shape) for n, layer in job.layout.items()}
        return choose_masks(job, checked, sparsity)

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
    return {name: pack(mask) for name, mask in select(scores).items()}, feed.cycle.taken


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


@dataclass
class LearnerCheckpoint:
    """Where a learner saves itself; it holds scores, the optimizer's moments, the buffers and the batches taken.

    It is three times the weights in float32: of a large model it is written less often than every so many steps.
    """

    place: Checkpoint
    settings: Mapping[str, Any]
    feed: _Feed
    wait_until: float = 0.0  # on the clock

    def save(self, step: int, scores: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write the state after a step, if it is time to."""
        begun = time.monotonic()
        if step % self.place.every or begun < self.wait_until:
            return
        tensors = {f"score/{name}": value for name, value in scores.items()}
        tensors |= {f"buffer/{name}": value for name, value in self.feed.job.model.named_buffers()}
        for name, value in scores.items():
            tensors |= {f"{key}/{name}": torch.as_tensor(moment) for key, moment in optimizer.state[value].items()}
        self.place.save_state(tensors, self.settings, {"step": step, "taken": self.feed.cycle.taken})
        ended = time.monotonic()
        self.wait_until = ended + (ended - begun) / SHARE if ended - begun > SLOW else ended

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
                    put_buffers(self.feed.job.model, {name: tensor})
                else:
                    device = scores[name].device if tensor.ndim else tensor.device
                    optimizer.state[scores[name]][kind] = tensor.to(device)
        self.feed.cycle = Cycle(self.feed.job.batches, world(), facts["taken"])  # type: ignore[arg-type]
        return int(facts["step"])


def _devices(job: Job) -> list[torch.device]:
    device = next(iter(job.weights.parameters.values())).device
    return [device] if device.type == "cuda" else []
