"""Pruning in steps: measure on the model as it is pruned by then, prune a little more, and again.

Every sparsity starts from the original weights, with the first batches and with the buffers as they were, so its masks
do not depend on which other sparsities were asked for. The user's weights are never written to: for the time of a run
the parameters point to other memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from multiflow.base.adapter import parts
from multiflow.base.errors import MultiflowError
from multiflow.base.steps import Step
from multiflow.base.types import put_weights, short
from multiflow.calibration import Cycle, buffers_restored, length, put_buffers, weights_replaced
from multiflow.masks import pack, unpack
from multiflow.methods.budgets import sparsities_of
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stages import Outcome, Packed, plan_identity

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """Where the steps of one sparsity stand."""

    packed: Packed  # layer name -> mask; what is gone stays gone
    weights: Tensors  # layer name -> weight, of which the masked part is what the model computes with

    def frozen(self, scores: Tensors) -> Tensors:
        """Return the scores, among which the weights that are gone already rank lowest."""
        return _Frozen(scores, self.packed)


@dataclass(frozen=True)
class PruningStep:
    """One step of a method in steps."""

    target: float  # the sparsity after it
    batches: Iterable[Any]  # what it measures on; iterated once
    most: int  # the batches there are at most
    progress: Step  # told of every batch


Take = Callable[[PruningPlan, State, PruningStep], State]
"""``f(plan, state, step)``: measure on the model as it is by now, prune up to the target, return the new state."""


def prune_in_steps(plan: PruningPlan, take: Take) -> Outcome:
    """Give the masks of each sparsity and, where the pruner changes weights, the new weights."""
    begun = time.perf_counter()
    settings = plan_identity(plan) if plan.checkpoint else {}
    packed, taken, changed = [], [], []
    for sparsity in plan.sparsities:
        place = plan.checkpoint.part(short(sparsity)) if plan.checkpoint else None
        with buffers_restored(plan.model), weights_replaced(plan.weights.parameters):
            run = _Run(plan, take, sparsity)
            if place and (saved := place.load_state(settings, run.tensors(), run.most())):
                run.go_on(*saved)
            for _ in run.steps():
                if place:
                    place.save_state(run.tensors(), settings, run.facts())
        packed.append(run.state.packed)
        taken.append(run.taken)
        if plan.pruner.changes_weights:
            parameters = plan.weights.parameters
            changed.append({n: weight.to("cpu", parameters[n].dtype) for n, weight in run.state.weights.items()})
    if plan.checkpoint:
        for sparsity in plan.sparsities:
            plan.checkpoint.part(short(sparsity)).delete()
    return Outcome(packed, taken, {"steps": time.perf_counter() - begun}, changed or None)


def most_batches(plan: PruningPlan) -> int:
    """Return the batches of a step: those asked for, or fewer where there are fewer."""
    asked = int(plan.request.hyper["batches_per_step"])
    return min(asked, length(plan.batches) or asked)


class _Run:
    """The steps of one sparsity."""

    def __init__(self, plan: PruningPlan, take: Take, sparsity: float) -> None:
        hyper, parameters = plan.request.hyper, plan.weights.parameters
        self._plan, self._take, self._tell = plan, take, plan.progress_of(sparsity)
        self._targets = sparsities_of(hyper["schedule"], sparsity, hyper["steps"])
        self._done = 0
        self._cycle = Cycle(plan.batches, hyper["batches_per_step"])  # type: ignore[arg-type]
        changes = plan.pruner.changes_weights
        self.state = State(
            {layer.name: pack(torch.ones(layer.shape).bool()) for layer in plan.layout.layers},
            dict(plan.weights) if changes else {name: weight.data for name, weight in parameters.items()},
        )

    def steps(self) -> Iterator[int]:
        """Take the steps that are left, yielding after each."""
        most = most_batches(self._plan)
        for target in self._targets[self._done :]:
            step = PruningStep(target, self._cycle.take(), most, self._progress)
            self.state = self._take(self._plan, self.state, step)
            self._done += 1
            self._install()
            yield self._done

    def _progress(self, what: str, done: int, total: int | None) -> None:
        if self._tell:
            each = most_batches(self._plan)
            self._tell(what, self._done * each + done, len(self._targets) * each)

    def _install(self) -> None:
        """Point the parameters to the weights as they are now."""

        def masked(name: str) -> Tensor:
            weight = self.state.weights[name]
            kept = unpack(self.state.packed[name], weight.numel()).view(weight.shape).to(weight.device)
            return weight.to(self._plan.weights.parameters[name].dtype).masked_fill(~kept, 0.0)

        put_weights(self._plan.weights.parameters, masked)

    @property
    def taken(self) -> int:
        """How many batches the steps have taken; one that came again counts again."""
        return self._cycle.taken

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"mask/{name}": torch.from_numpy(bits) for name, bits in self.state.packed.items()}
        moved = {f"buffer/{name}": buffer for name, buffer in self._plan.model.named_buffers()}
        changed = self.state.weights if self._plan.pruner.changes_weights else {}
        return {**kept, **moved, **{f"weight/{name}": weight for name, weight in changed.items()}}

    def facts(self) -> dict[str, int]:
        """Return the numbers of a checkpoint."""
        return {"step": self._done, "taken": self.taken}

    def most(self) -> dict[str, int]:
        """Return the largest numbers that a checkpoint can hold."""
        steps = len(self._targets)
        return {"step": steps, "taken": steps * int(self._plan.request.hyper["batches_per_step"])}

    def go_on(self, tensors: Tensors, facts: Mapping[str, int]) -> None:
        """Stand where a checkpoint stood."""
        plan = self._plan
        of: dict[str, dict[str, Tensor]] = {"mask": {}, "buffer": {}, "weight": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            of[kind][name] = tensor
        self.state = State(
            {name: bits.numpy() for name, bits in of["mask"].items()},
            {name: of["weight"].get(name, old).to(old.device) for name, old in self.state.weights.items()},
        )
        put_buffers(plan.model, of["buffer"])
        self._done = facts["step"]
        self._cycle = Cycle(plan.batches, plan.request.hyper["batches_per_step"], facts["taken"])  # type: ignore[arg-type]
        self._install()


class _Frozen(Mapping[str, Tensor]):
    """Scores in which the weights that are gone already rank lowest."""

    def __init__(self, scores: Mapping[str, Tensor], packed: Packed) -> None:
        self._scores, self._packed = scores, packed

    def __getitem__(self, name: str) -> Tensor:
        scores = self._scores[name]
        kept = unpack(self._packed[name], scores.numel()).view(scores.shape).to(scores.device)
        return scores.masked_fill(~kept, -torch.inf)

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)


def count_samples(batch: Any) -> int:
    """Count the samples of a batch, its region part included: the texts, or the images where there are no texts.

    >>> count_samples({"input_ids": torch.zeros(4, 7), "region": {"input_ids": torch.zeros(6, 7)}})
    10
    """
    return sum(_rows(part) for part in parts(batch))


def _rows(part: Any) -> int:
    part = vars(part) if is_dataclass(part) else part
    if isinstance(part, Mapping):
        tensors = [part[name] for name in ("input_ids", "pixel_values") if name in part] or list(part.values())
    else:
        tensors = list(part) if isinstance(part, tuple | list) else [part]
    first = next((tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim), None)
    if first is None:
        raise MultiflowError(f"a batch ({type(part).__name__}) holds no tensor, so its samples cannot be counted")
    return len(first)
