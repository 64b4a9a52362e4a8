"""What update methods share: least squares on a mask, damping, and second moments scaled to ones on the diagonal.

With H the damped second moment of a layer's inputs, the error of its outputs, ``tr (X - W) H (X - W)'``, is a problem
of its own in every output row. With D the root of the diagonal of H, ``G = D^-1 H D^-1`` and ``B = W D``, the error is
the same in G and B, and no input is larger than another (`scaled`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.base.errors import MultiflowError

Fitted = tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]


def check_ridge(ridge: float) -> None:
    """Refuse a damping that may leave the second moment singular."""
    if not ridge > 0:
        raise MultiflowError(f"{{ridge={ridge}}} was given; expected a number above 0, such as 0.01", field="ridge")


def damped(moment: Float[Tensor, "in in"], ridge: float) -> Float[Tensor, "in in"]:
    """Add ``ridge`` (above 0) times the mean of the diagonal to the diagonal; 1 where all inputs are zero."""
    mean = moment.diagonal().mean()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return moment + torch.where(mean > 0, ridge * mean, 1.0) * identity


class Scaled(NamedTuple):
    """A layer at unit diagonal.

    Args:
        moment: G, of ones on the diagonal.
        weight: B = W D.
        scale: the diagonal of D.
    """

    moment: Float[Tensor, "in in"]
    weight: Float[Tensor, "out in"]
    scale: Float[Tensor, " in"]


def scaled(weight: Float[Tensor, "out in"], moment: Float[Tensor, "in in"], ridge: float) -> Scaled:
    """Damp the second moment and scale it to ones on the diagonal, the weights with it."""
    moment = damped(moment, ridge)
    scale = moment.diagonal().sqrt()
    return Scaled(moment / scale / scale[:, None], weight * scale, scale)


def inverse(moment: Float[Tensor, "in in"], layer: str, ridge: float) -> Float[Tensor, "in in"]:
    """Invert a symmetric matrix, in float64 where float32 is not enough.

    Raises:
        MultiflowError: it has no inverse; names the layer, and a ridge above the one that was given.
    """
    for matrix in (moment, moment.double()):
        factor, failed = torch.linalg.cholesky_ex(matrix)
        found = torch.cholesky_inverse(factor)
        if not failed and found.isfinite().all():
            return found.to(moment)
    raise no_inverse(layer, ridge)


def no_inverse(layer: str, ridge: float) -> MultiflowError:
    """Return the error of a second moment that has no inverse at the ridge given."""
    return MultiflowError(
        f"the second moment of the inputs of layer '{layer}' has no inverse at ridge {ridge:g}; raise ridge, to "
        f"{max(0.01, 10 * ridge):g} say, or calibrate on more batches"
    )


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
        curve = (ahead * bent).sum(1, keepdim=True)
        step = torch.where(curve > 0, slope / curve.clamp(min=tiny), 0.0)  # 0 in a row that is done, empty or rounded
        found += step * ahead
        residual -= step * bent
        towards = residual * scale
        before, slope = slope, (residual * towards).sum(1, keepdim=True)
        ahead = towards.add_(slope / before.clamp(min=tiny) * ahead)
    return found.masked_fill_(~mask, 0.0)
