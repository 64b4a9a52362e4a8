"""TAMT: task-agnostic mask training (Liu et al., NAACL 2022, arXiv 2204.11218).

One real score T_ij per weight is trained on the pretraining loss, the weights stay as they are:

    mask_ij = 1 if T_ij is not among the lowest of its layer, else 0       (the share that is dropped is always s)
    forward with W * mask,    dL/dT := dL/d(W * mask) * W                  (straight-through)

T starts at 2 t where pruning by magnitude within the layer keeps the weight and at 0 elsewhere, t being the magnitude
below which a share s of all weights lies. AdamW without decay, learning rate falling linearly to zero, dropout on.
``threshold="global"`` takes the lowest scores of all layers together, as published for vision-language models.

Difference from the published code: the gradient reaches dropped weights as well, so that they can come back.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.order import smallest
from multiflow.base.parallel import sum_over_ranks_, world
from multiflow.methods.declare import learner

Tensors = Mapping[str, Tensor]


def check(steps: int, lr: float) -> None:
    """Refuse what trains nothing."""
    if steps < 1 or not lr > 0:
        raise MultiflowError(f"steps {steps} and lr {lr} were given; expected at least 1 step and an lr above 0")


@learner(allocation="uniform", check=check)
def tamt(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    loss: Callable[[], Tensor],
    select: Callable[[Tensors], Tensors],
    *,
    sparsity: float,
    seed: int,
    checkpoint: Any,
    progress: Callable[[str, int, int | None], None] | None,
    lr: float = 5e-5,
    steps: int = 3000,
    threshold: str = "layer",
) -> dict[str, Tensor]:
    """Lowest scores, trained on the pretraining loss through their own mask."""
    frozen = {name: weight.detach() for name, weight in weights.items()}
    scores = start_scores(frozen, sparsity)
    optimizer = torch.optim.AdamW(scores.values(), lr, weight_decay=0.0)
    done = checkpoint.resume(scores, optimizer) if checkpoint else 0
    model.train()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        for name, kept in select(scores).items():
            weights[name].data = frozen[name] * kept.to(frozen[name].device)
        torch.manual_seed(zlib.crc32(f"{seed} {step}".encode()))
        loss().backward()
        for name, weight in weights.items():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            wide = torch.promote_types(weight.dtype, torch.float32)  # half precision would round small products to zero
            scores[name].grad = (gradient.to(wide) * frozen[name].to(wide)).float() / world()
            weight.grad = None
        sum_over_ranks_(score.grad for score in scores.values() if score.grad is not None)
        optimizer.step()
        if checkpoint:
            checkpoint.save(step + 1, scores, optimizer)
        if progress:
            progress("learn", step + 1, steps)
    return scores


def start_scores(weights: Tensors, sparsity: float) -> dict[str, Tensor]:
    """Return ``2 t`` for the weights that magnitude within the layer keeps, 0 for the others; float32."""
    magnitudes = {name: weight.abs().float() for name, weight in weights.items()}
    sizes = [weight.numel() for weight in weights.values()]
    border = _border(list(magnitudes.values()), sizes, sparsity)
    return {
        name: 2 * border * (magnitude > _border([magnitude], [magnitude.numel()], sparsity)).float()
        for name, magnitude in magnitudes.items()
    }


def _border(values: list[Tensor], sizes: list[int], sparsity: float) -> float:
    """The value below which a share of all values lies."""
    cut = smallest([partial(Tensor.detach, value) for value in values], sizes, [round(sparsity * sum(sizes))])[0]
    return min(max(cut.value, 0.0), max(float(value.max()) for value in values))  # finite, even if all of them go
