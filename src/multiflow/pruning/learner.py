"""Running a learner: a pruner that trains scores through the masks they make."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import parts
from multiflow.base.artifacts import check_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import in_parallel, world
from multiflow.base.types import LiveWeights, by_parameter, short
from multiflow.calibration import (
    Checkpoint,
    Cycle,
    announce,
    buffers_restored,
    differentiable,
    keep_up,
    loss_of,
    put_buffers,
    turns,
    weights_replaced,
)
from multiflow.masks import hash_weight, pack
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stages import Outcome, Packed, check_named, check_scores, choose_masks, plan_identity

TRAINED = 5 * 4  # bytes a weight while scores are trained: score, its gradient and two moments, room for a step
SLOW = 1.0  # seconds to write a checkpoint from which on it is written less often
MOST_STEPS = 10**6  # of a learner that has no hyper-parameter of this name
MOST_LOSSES = 100  # of a step, each of a batch
SHARE = 0.1  # of the time, at most, that slow ones take


def run(plan: PruningPlan) -> Outcome:
    """Give the masks of each sparsity, learned anew; a learner that writes to the user's weights is an error."""
    begun, parameters = time.perf_counter(), plan.weights.parameters
    size = sum(TRAINED * weight.numel() + 2 * weight.nbytes for weight in parameters.values())
    announce(f"{plan.pruner.name} trains scores, which with masked weights and their gradients take up to", size)
    settings = plan_identity(plan) if plan.checkpoint else {}
    before = _hashes(plan)
    packed, batches = [], []
    for sparsity in plan.sparsities:
        with (
            buffers_restored(plan.model),
            weights_replaced(parameters),
            differentiable(plan.model, parameters),
            torch.random.fork_rng(_devices(plan)),
            _leaves(plan.weights.parameters) as (leaves, push),
        ):
            masks, taken = _learn(plan, sparsity, settings, leaves, push)
        if changed := [name for name, now in _hashes(plan).items() if now != before[name]]:
            raise MultiflowError(
                f"pruner '{plan.pruner.name}' changed the weight of layer '{changed[0]}' in place; let it put other "
                "memory there (weight.data = weight * mask, not weight.mul_(mask)), and load the model anew"
            )
        packed.append(masks)
        batches.append(taken)
    if plan.checkpoint:
        for sparsity in plan.sparsities:
            plan.checkpoint.part(short(sparsity)).delete()
    return Outcome(packed, batches, {"steps": time.perf_counter() - begun})


def _hashes(plan: PruningPlan) -> dict[str, str]:
    """Layer name -> hash of its weight: a learner may point ``weight.data`` elsewhere, so versions say nothing."""
    return dict(zip(plan.layout, in_parallel(hash_weight, plan.weights.parameters.values()), strict=True))


@contextmanager
def _leaves(weights: LiveWeights) -> Iterator[tuple[dict[str, nn.Parameter], Callable[[], None]]]:
    """Give a parameter for every layer, and what puts those of its own, which lie in a part of one, into the model.

    A learner reads the ``.grad`` of each and points its ``.data`` elsewhere, as it does with the parameter of a layer
    that has one. The gradient of a part is a view of its parameter's, so that ``model.zero_grad()`` counts, and so does
    letting go of it by the leaf.
    """
    leaves: dict[str, nn.Parameter] = {}
    shared: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for parameter, parts in by_parameter(weights):
            if None in parts.values():
                leaves[next(iter(parts))] = parameter
                continue
            own = {
                name: nn.Parameter(part.view(parameter.data))  # type: ignore[union-attr]
                for name, part in parts.items()
            }
            leaves |= own
            shared |= own

            def let_go(gradient: Tensor, parameter: nn.Parameter = parameter, own: Any = own) -> None:
                if all(leaf.grad is None for leaf in own.values()):
                    parameter.grad = None

            def share(parameter: Tensor, parts: Any = parts, own: Any = own) -> None:
                for name, part in parts.items():
                    own[name].grad = part.view(parameter.grad)

            stack.callback(parameter.register_hook(let_go).remove)
            stack.callback(parameter.register_post_accumulate_grad_hook(share).remove)

        def push() -> None:
            for parameter, parts in by_parameter(weights):
                if None not in parts.values():
                    data = parameter.data.clone()
                    for name, part in parts.items():
                        part.view(data).copy_(shared[name].data)  # type: ignore[union-attr]
                    parameter.data = data

        yield {name: leaves[name] for name in weights}, push


def _learn(
    plan: PruningPlan,
    sparsity: float,
    settings: Mapping[str, Any],
    leaves: Mapping[str, nn.Parameter],
    push: Callable[[], None],
) -> tuple[Packed, int]:
    """Return the packed masks of a sparsity, and how many batches were taken."""
    place = plan.checkpoint.part(short(sparsity)) if plan.checkpoint else None
    feed = _Feed(plan, Cycle(plan.batches, world()), push)  # type: ignore[arg-type]

    def select(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = check_named(plan.pruner, "scores", scores)
        checked = {n: check_scores(plan.pruner, n, given.get(n), layer.shape) for n, layer in plan.layout.items()}
        return choose_masks(plan, checked, sparsity)

    scores = plan.pruner.call(
        plan.model,
        leaves,
        feed.loss,
        select,
        sparsity=sparsity,
        seed=plan.seed,
        checkpoint=LearnerCheckpoint(place, settings, feed) if place else None,
        progress=plan.progress_of(sparsity),
        **plan.request.own_hyper,
    )
    return {name: pack(mask) for name, mask in select(scores).items()}, feed.cycle.taken


@dataclass
class _Feed:
    """The loss of the model on one batch after another; of several processes each has one of its own."""

    plan: PruningPlan
    cycle: Cycle
    push: Callable[[], None]

    def loss(self) -> Tensor:
        """Return the loss on the next batch, with its graph; the mean over all processes is that of their batches."""
        plan, before = self.plan, self.cycle.taken
        self.push()
        device = next(iter(plan.weights.parameters.values())).device
        value = torch.zeros((), device=device, requires_grad=True)  # of a process without a batch
        for turn in turns(self.cycle.take(), split=parts):
            for number, batch in turn.own:
                value = loss_of(plan.model, batch, before + number, plan.adapter.loss, device)  # type: ignore[arg-type]
            keep_up(plan.model, turn, plan.adapter.idle)
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
        tensors |= {f"buffer/{name}": value for name, value in self.feed.plan.model.named_buffers()}
        for name, value in scores.items():
            tensors |= {f"{key}/{name}": moment for key, moment in _moments(optimizer, value).items()}
        self.place.save_state(tensors, self.settings, {"step": step, "taken": self.feed.cycle.taken})
        ended = time.monotonic()
        self.wait_until = ended + (ended - begun) / SHARE if ended - begun > SLOW else ended

    def resume(self, scores: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Put scores, optimizer, buffers and batches where they were; return the number of steps done."""
        steps = int(self.feed.plan.request.hyper.get("steps", MOST_STEPS))
        most = {"step": steps, "taken": MOST_LOSSES * steps * world()}
        found = self.place.load_state(self.settings, most=most)
        if found is None:
            return 0
        tensors, facts = found
        _step_in_place(scores, optimizer)
        kept = {f"score/{name}": value for name, value in scores.items()}
        kept |= {f"buffer/{name}": value for name, value in self.feed.plan.model.named_buffers()}
        for name, value in scores.items():
            kept |= {f"{key}/{name}": moment for key, moment in _moments(optimizer, value).items()}
        like = {key: (tuple(value.shape), [value.dtype]) for key, value in kept.items()}
        check_tensors(self.place.path, tensors, like, "delete it", finite=False)
        with torch.no_grad():
            for key, tensor in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "score":
                    scores[name].copy_(tensor)
                elif kind == "buffer":
                    put_buffers(self.feed.plan.model, {name: tensor})
                else:
                    device = scores[name].device if tensor.ndim else tensor.device
                    optimizer.state[scores[name]][kind] = tensor.to(device)
        self.feed.cycle = Cycle(self.feed.plan.batches, world(), facts["taken"])  # type: ignore[arg-type]
        return int(facts["step"])


def _moments(optimizer: torch.optim.Optimizer, value: Tensor) -> dict[str, Tensor]:
    """What an optimizer remembers of a parameter: tensors and numbers; SGD without momentum remembers None."""
    return {key: torch.as_tensor(of) for key, of in optimizer.state[value].items() if of is not None}


def _step_in_place(scores: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make the state that it has after a step, by one of which nothing but that state remains."""
    before = {name: value.detach().clone() for name, value in scores.items()}
    for value in scores.values():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    with torch.no_grad():
        for name, value in scores.items():
            value.grad = None
            value.copy_(before[name])


def _devices(plan: PruningPlan) -> list[torch.device]:
    device = next(iter(plan.weights.parameters.values())).device
    return [device] if device.type == "cuda" else []
