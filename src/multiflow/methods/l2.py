"""Magnitude relative to the layer's norm.

score_ij = |W_ij| / ||W||_F, ranked over all layers together.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer(allocation="global")
def l2(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Smallest magnitude relative to the Frobenius norm of the layer."""
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))  # no overflow, whatever the weights
    return weight.abs() / norm if norm > 0 else weight.abs()
