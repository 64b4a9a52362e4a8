"""RIA: relative importance and activations (Zhang et al., ICLR 2024, "Plug-and-play", equation 3).

    score_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * a_j^alpha,    alpha = 0.5

with a_j the root mean square of input feature j, ranked inside every layer. A row or column of zeros scores zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer(allocation="uniform")
def ria(
    weight: Float[Tensor, "out in"], *, input_norm: Float[Tensor, " in"], alpha: float = 0.5
) -> Float[Tensor, "out in"]:
    """Magnitude relative to its row and its column, times a power of the input feature's norm."""
    magnitude = weight.abs()
    tiny = torch.finfo(magnitude.dtype).tiny
    column = magnitude.sum(0).clamp(min=tiny).reciprocal()
    row = magnitude.sum(1, keepdim=True).clamp(min=tiny).reciprocal()
    return magnitude.mul_(column + row).mul_(input_norm**alpha)
