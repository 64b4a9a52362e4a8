"""Refit: one-shot least-squares update of the weights that a mask keeps (layer by layer, by conjugate gradients).

With H the second moment of a layer's inputs, and the mask given,

    minimise   tr (X - W) (H + ridge mean(diag H) I) (X - W)'   over X    subject to    X_ij = 0 where the mask drops

so that the layer's outputs on the calibration data stay what they were, in mean square. Every output row is a problem
of its own; all rows take their steps of conjugate gradients together, preconditioned by the diagonal: a step costs one
matrix product, and no system is factored.

``multiflow-refit`` drops what ``multiflow`` drops, then refits.

Ideas: optimal brain surgeon a layer at a time (arXiv 1705.07565), SparseGPT (arXiv 2301.00774), which updates while it
chooses, and the update of a given mask by ADMM (Boza, arXiv 2401.02938). Here it is conjugate gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.multiflow import multiflow

Fitted = tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]


def check_ridge(ridge: float) -> None:
    """Refuse a damping that may leave the second moment singular."""
    if not ridge > 0:
        raise MultiflowError(f"ridge {ridge} was given; expected a number above 0, such as 0.01")


@fitter("multiflow-refit", allocation="multimodal", check=check_ridge)
def multiflow_refit(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    ridge: float = 1e-2,
    iterations: int = 20,
) -> Fitted:
    """MULTIFLOW's masks, and the kept weights refitted so that every layer's outputs stay."""
    mask = choose(multiflow(weight, input_norm=input_moment.diagonal().sqrt()))
    return mask, refit(weight, mask, damped(input_moment, ridge), iterations)


def damped(moment: Float[Tensor, "in in"], ridge: float) -> Float[Tensor, "in in"]:
    """Add ``ridge`` (above 0) times the mean of the diagonal to the diagonal; 1 where all inputs are zero."""
    mean = moment.diagonal().mean()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment + torch.where(mean > 0, ridge * mean, 1.0) * identity


def refit(
    weight: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    moment: Float[Tensor, "in in"],
    iterations: int,
    start: Float[Tensor, "out in"] | None = None,
) -> Float[Tensor, "out in"]:
    """Return the weights on a mask whose outputs are closest to those of ``weight``.

    Args:
        weight: the dense weights.
        mask: True = kept.
        moment: of the inputs, positive definite.
        iterations: steps of conjugate gradients.
        start: weights to begin from, such as those of a mask that kept more; ``weight`` itself if left out.
    """
    found = (weight if start is None else start).masked_fill(~mask, 0.0)
    tiny = torch.finfo(found.dtype).tiny
    scale = moment.diagonal().reciprocal()
    residual = ((weight - found) @ moment).mul_(mask)
    ahead = residual * scale
    slope = (residual * ahead).sum(1, keepdim=True)
    for _ in range(iterations):
        bent = (ahead @ moment).mul_(mask)
        step = slope / (ahead * bent).sum(1, keepdim=True).clamp(min=tiny)  # 0 in a row that is done or empty
        found += step * ahead
        residual -= step * bent
        towards = residual * scale
        before, slope = slope, (residual * towards).sum(1, keepdim=True)
        ahead = towards.add_(slope / before.clamp(min=tiny) * ahead)
    return found.masked_fill_(~mask, 0.0)
