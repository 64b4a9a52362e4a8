"""Pruning in steps: measure on the model as it is pruned by then, prune a little more, and again.

Every sparsity starts from the original weights, with the first batches and with the buffers as they were, so its masks
do not depend on which other sparsities were asked for. The user's weights are never written to: for the time of a run
the parameters point to other memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from multiflow.base.adapter import parts
from multiflow.base.errors import MultiflowError
from multiflow.calibration import (
    Cycle,
    Stats,
    announce,
    buffers_restored,
    check_rows_fit,
    gradient_rows,
    length,
    put_buffers,
    weights_replaced,
)
from multiflow.masks import pack, unpack
from multiflow.methods.budgets import sparsities_of
from multiflow.pruning.choose import Packed, Pruned, choose, select_lowest
from multiflow.pruning.job import Job
from multiflow.pruning.measure import identity, measure
from multiflow.pruning.result import Scores, short
from multiflow.pruning.returned import check_fitted, check_named, check_pair

Tensors = Mapping[str, Tensor]


def prune_in_steps(job: Job) -> Iterator[Pruned]:
    """Yield for each sparsity the packed masks and, where the pruner changes weights, the new weights."""
    if job.pruner.kind == "solver":
        what, size = check_rows_fit(job.weights.parameters, _most_rows(job), int(job.hyper["steps"]))
        announce(f"{job.pruner.name} takes {what}", size)
    settings = identity(job.adapter, job.layout, job.weights, **job.record(0)) if job.checkpoint else {}
    for sparsity in job.sparsities:
        place = job.checkpoint.part(short(sparsity)) if job.checkpoint else None
        with buffers_restored(job.model), weights_replaced(job.weights.parameters):
            run = _Run(job, sparsity)
            if place and (state := place.load_state(settings)):
                run.go_on(*state)
            for _ in run.steps():
                if place:
                    place.save_state(run.tensors(), settings, run.facts())
        yield Pruned(run.packed, run.current if job.pruner.changes_weights else None, run.taken)
    if job.checkpoint:
        for sparsity in job.sparsities:
            job.checkpoint.part(short(sparsity)).delete()


def _most_rows(job: Job) -> int:
    """The batches of a step: those asked for, or fewer where there are fewer."""
    asked = int(job.hyper["batches_per_step"])
    return min(asked, length(job.batches) or asked)


class _Run:
    """The steps of one sparsity."""

    def __init__(self, job: Job, sparsity: float) -> None:
        self._job = job
        self._tell = job.progress_of(sparsity)
        self._targets = sparsities_of(job.hyper["schedule"], sparsity, job.hyper["steps"])
        self._done = 0
        self._cycle = Cycle(job.batches, job.hyper["batches_per_step"])  # type: ignore[arg-type]
        self.packed: Packed = {layer.name: pack(torch.ones(layer.shape).bool()) for layer in job.layout.layers}
        solves = job.pruner.changes_weights
        self.current: Tensors = dict(job.weights) if solves else {n: w.data for n, w in job.weights.parameters.items()}

    def steps(self) -> Iterator[int]:
        """Take the steps that are left, yielding after each."""
        job = self._job
        step = self._solve if job.pruner.kind == "solver" else self._score
        for target in self._targets[self._done :]:
            batches = self._cycle.take()
            step(list(batches) if len(job.pruner.statistics) > 1 else batches, target)
            self._done += 1
            self._install()
            yield self._done

    def _score(self, batches: Iterable[Any], target: float) -> None:
        job = self._job
        options = {"progress": self._progress}
        found = [measure(job.model, job.layout, batches, job.adapter, n, **options) for n in job.pruner.statistics]
        scores = Scores(job.pruner, job.weights, Stats.join(found) if found else None, job.own_hyper, job.seed)
        before, self.packed = self.packed, choose(job, _Frozen(scores, self.packed), [target])[0]
        for name, bits in self.packed.items():
            if (bits & ~before[name]).any():
                raise MultiflowError(
                    f"at sparsity {target:g} the allocation drops fewer weights of layer '{name}' than a step before; "
                    "in steps a layer can only lose more"
                )

    def _solve(self, batches: Iterable[Any], target: float) -> None:
        job = self._job
        rows, samples = gradient_rows(
            job.model,
            job.weights.parameters,
            batches,
            job.adapter.loss,  # type: ignore[arg-type]
            most=_most_rows(job),
            samples=count_samples,
            split=parts,
            idle=job.adapter.idle,
            progress=self._progress,
        )
        for name, of in rows.items():  # a weight that is gone has no gradient: it stays gone
            of *= unpack(self.packed[name], of.shape[1]).to(of.device)
        given = {"gradient_rows": rows, "batch_samples": samples}
        count = round(target * job.layout.size)
        versions = {name: weight._version for name, weight in self.current.items()}
        found = job.pruner.function(
            self.current, count, select_lowest, **{name: given[name] for name in job.pruner.needs}, **job.own_hyper
        )
        for name, weight in self.current.items():
            if weight._version != versions[name]:
                raise MultiflowError(
                    f"pruner '{job.pruner.name}' changed the weight of layer '{name}' in place; let it return new "
                    "tensors (weight * mask, not weight.mul_(mask)), and load the model anew"
                )
        pair = check_pair(job.pruner, found)
        masks, solved = check_named(job.pruner, "mask", pair[0]), check_named(job.pruner, "weight", pair[1])
        self.current = {
            name: check_fitted(job.pruner, name, masks.get(name), solved.get(name), layer.shape).to(self.current[name])
            for name, layer in job.layout.items()
        }
        self.packed = {name: pack(masks[name]) for name in job.layout}
        if (dropped := sum(int((~masks[name]).sum()) for name in job.layout)) != count:
            raise MultiflowError(f"pruner '{job.pruner.name}' drops {dropped} weights; it was asked for {count}")

    def _progress(self, what: str, done: int, total: int | None) -> None:
        if self._tell:
            each = _most_rows(self._job)
            self._tell(what, self._done * each + done, len(self._targets) * each)

    def _install(self) -> None:
        """Point the parameters to the weights as they are now."""
        for name, parameter in self._job.weights.parameters.items():
            kept = unpack(self.packed[name], parameter.numel()).view(parameter.shape).to(parameter.device)
            parameter.data = self.current[name].to(parameter.dtype).masked_fill(~kept, 0.0)

    @property
    def taken(self) -> int:
        """How many batches the steps have taken; one that came again counts again."""
        return self._cycle.taken

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        kept = {f"mask/{name}": torch.from_numpy(bits) for name, bits in self.packed.items()}
        moved = {f"buffer/{name}": buffer for name, buffer in self._job.model.named_buffers()}
        solved = (
            {f"weight/{n}": weight for n, weight in self.current.items()} if self._job.pruner.changes_weights else {}
        )
        return {**kept, **moved, **solved}

    def facts(self) -> dict[str, int]:
        """Return the numbers of a checkpoint."""
        return {"step": self._done, "taken": self.taken}

    def go_on(self, tensors: Tensors, facts: Mapping[str, int]) -> None:
        """Stand where a checkpoint stood."""
        job = self._job
        of: dict[str, dict[str, Tensor]] = {"mask": {}, "buffer": {}, "weight": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            of[kind][name] = tensor
        self.packed = {name: bits.numpy() for name, bits in of["mask"].items()}
        self.current = {n: of["weight"].get(n, weight).to(weight.device) for n, weight in self.current.items()}
        put_buffers(job.model, of["buffer"])
        self._done = facts["step"]
        self._cycle = Cycle(job.batches, job.hyper["batches_per_step"], facts["taken"])  # type: ignore[arg-type]
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
    if isinstance(part, Mapping):
        tensors = [part[name] for name in ("input_ids", "pixel_values") if name in part] or list(part.values())
    else:
        tensors = list(part) if isinstance(part, tuple | list) else [part]
    first = next((tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim), None)
    if first is None:
        raise MultiflowError(f"a batch ({type(part).__name__}) holds no tensor, so its samples cannot be counted")
    return len(first)
