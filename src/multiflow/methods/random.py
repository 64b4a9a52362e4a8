"""Random pruning: the floor that every method must clear.

score_ij ~ U(0, 1), ranked over all layers together; a function of the seed and the layer's name alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer(allocation="global")
def random(weight: Float[Tensor, "out in"], *, generator: torch.Generator) -> Float[Tensor, "out in"]:
    """Random weights, whatever their layer."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)
