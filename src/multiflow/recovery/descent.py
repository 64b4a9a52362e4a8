"""Gradient descent on calibration data until what was held out gets no better.

Adam (arXiv 1412.6980), the learning rate along a cosine. A step takes a fixed number of batches, whatever the number of
processes: each takes the gradients of its own ones, and they are added up. After every pass over the data the loss on
the batches held out is taken; the best parameters are kept, those from before included. A pass that ends worse than
where all began is taken back, and the rates are a fifth from then on: what suits weights that have lost everything is
too much for those that are nearly there.

This is not the loop that trains for a task (`multiflow.training`): it has no labels, ends by itself, and goes through
batches that are in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import exchange, sum_over_ranks_

BETTER = 1e-3
"""A loss is better if it is smaller by more than this share."""
HELD_OUT = 8
"""Of so many batches one is held out."""
LESS = 0.2
"""Of the rates that is left after a pass that was taken back."""
WARMUP = 0.05  # of all steps
CLIP = 1.0


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Args:
        epochs: passes over the batches, at most.
        lr: highest learning rate, as a share of the root mean square of the kept weights that are trained.
        batches_per_step: batches whose gradients are averaged in a step, those of all processes together.
        patience: passes without a better loss after which it ends.
        seed: of the order of the batches.
    """

    epochs: int = 10
    lr: float = 0.05
    batches_per_step: int = 1
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batches_per_step", "patience"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise MultiflowError(
                    f"{{{name}}} {value!r} was given; expected a whole number of at least 1", field=name
                )
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise MultiflowError(f"{{lr}} {self.lr!r} was given; expected a number above 0, such as 0.05", field="lr")


@dataclass(frozen=True)
class Descended:
    """What came of it: the loss held out before and after, and the passes that were made."""

    before: float
    after: float
    epochs: int

    def report(self) -> dict[str, float]:
        """Return it as plain values."""
        return {"before": self.before, "after": self.after, "passes": self.epochs}


def split_off(count: int) -> tuple[list[int], list[int]]:
    """Return the numbers (from 1) of the batches to train on, and of those that are held out.

    >>> split_off(9)
    ([1, 2, 3, 4, 5, 6, 7, 9], [8])
    >>> split_off(3)
    ([1, 2], [3])
    """
    held = [number for number in range(1, count + 1) if number % HELD_OUT == 0] or [count]
    return [number for number in range(1, count + 1) if number not in held], held


def descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor | None],
    own: Collection[int],
    count: int,
    how: Descent,
    what: str,
    *,
    optimizer: torch.optim.Optimizer,
    saved: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
    after_epoch: Callable[[dict[str, Tensor], dict[str, Any]], None] | None = None,
) -> Descended:
    """Change parameters in place until the loss on what is held out gets no better.

    Args:
        parameters: what is trained.
        loss: number of a batch (from 1) -> its loss, a scalar with a graph; None where the batch has none.
        own: the numbers of the batches of this process.
        count: the number of batches of all processes.
        how: steps and rates.
        what: is trained, for errors.
        optimizer: over the parameters; its learning rate is the highest.
        saved: tensors and facts of `after_epoch`, to go on from.
        after_epoch: is given them after every pass.
    """
    train, held = split_off(count)
    steps = -(-len(train) // how.batches_per_step)
    peaks = [group["lr"] for group in optimizer.param_groups]

    def held_out() -> float:
        with torch.no_grad():
            mine = [found.item() for number in held if number in own and (found := value(number)) is not None]
        everyone = [x for of in exchange("held out", mine) for x in of]
        return math.fsum(everyone) / len(everyone) if everyone else math.nan

    def value(number: int) -> Tensor | None:
        found = loss(number)
        if found is not None and not math.isfinite(float(found.detach())):
            raise MultiflowError(
                f"the loss of {what} is {float(found.detach()):g} in batch {number}; check that batch's data, or lower "
                f"{{lr}} ({how.lr:g})",
                field="lr",
            )
        return found

    # 1. where it stands
    if saved is None:
        before = best = held_out()
        kept, bad, first, share_left = [p.detach().clone() for p in parameters], 0, 0, 1.0
    else:
        kept = _restore(parameters, optimizer, saved[0])
        before, best, bad, first = (saved[1][name] for name in ("before", "best", "bad", "epoch"))
        share_left = saved[1].get("share_left", 1.0)

    epoch = first
    for epoch in range(first + 1, how.epochs + 1):
        if bad >= how.patience or math.isnan(best):
            epoch -= 1
            break
        # 2. one pass
        generator = torch.Generator().manual_seed(how.seed * 1_000_003 + epoch)
        order = [train[i] for i in torch.randperm(len(train), generator=generator).tolist()]
        for step in range(steps):
            numbers = order[step * how.batches_per_step : (step + 1) * how.batches_per_step]
            optimizer.zero_grad()
            for number in numbers:
                if number in own and (part := value(number)) is not None and part.requires_grad:
                    (part / len(numbers)).backward()
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sum_over_ranks_([p.grad for p in parameters if p.grad is not None])
            nn.utils.clip_grad_norm_(parameters, CLIP)
            share = share_left * rate((epoch - 1) * steps + step, how.epochs * steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            optimizer.step()
        # 3. what was held out
        found = held_out()
        if found < best * (1 - BETTER):
            bad = 0
        else:
            bad += 1
        if found < best:
            best = found
            kept = [p.detach().clone() for p in parameters]
        elif found > before:
            share_left *= LESS
            _put(parameters, kept)
        if after_epoch is not None:
            facts = {"epoch": epoch, "before": before, "best": best, "bad": bad, "share_left": share_left}
            after_epoch(_state(parameters, optimizer, kept), facts)
    _put(parameters, kept)
    return Descended(before, best, epoch)


def rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate at a step (from 0): up along a line, then down along a cosine.

    >>> [round(rate(step, 5), 2) for step in range(5)]
    [0.98, 0.79, 0.5, 0.21, 0.02]
    """
    warmup = round(WARMUP * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup + 0.5) / (steps - warmup))) / 2


@torch.no_grad()
def _put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _state(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, kept: Sequence[Tensor]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, (p, best) in enumerate(zip(parameters, kept, strict=True)):
        found |= {f"now/{number}": p.detach(), f"best/{number}": best}
        found |= {f"{name}/{number}": x for name, x in optimizer.state[p].items() if isinstance(x, Tensor)}
    return found


def _restore(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> list[Tensor]:
    with torch.no_grad():
        for number, p in enumerate(parameters):
            p.copy_(tensors[f"now/{number}"])
            names = [key.rpartition("/")[0] for key in tensors if key.endswith(f"/{number}")]
            optimizer.state[p] = {
                name: tensors[f"{name}/{number}"].to(p.device if name != "step" else "cpu")
                for name in names
                if name not in ("now", "best")
            }
    return [tensors[f"best/{number}"].to(p.device) for number, p in enumerate(parameters)]
