"""Rescale: MULTIFLOW's masks, and every output row scaled back to the strength that it had.

    X_ij = c_i W_ij where the mask keeps it,    c_i^2 = sum over j of (W_ij a_j)^2 / the same sum over kept j

with a_j the root mean square of input feature j. Were the features uncorrelated, the outputs would have the second
moment that they had before. It takes nothing from the data but what the score takes. A row whose kept inputs are all
silent is left as it is.

Idea: activations of a pruned network shrink with the signal that is lost; compare the corrections after quantization
(Nagel et al., arXiv 1906.04721) and after merging (REPAIR, arXiv 2211.08403).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.pruners.base import Choose, fitter
from multiflow.pruners.multiflow import multiflow


@fitter("multiflow-rescale", allocation="multimodal")
def multiflow_rescale(
    weight: Float[Tensor, "out in"], choose: Choose, *, input_norm: Float[Tensor, " in"]
) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]:
    """MULTIFLOW's masks, and every output row scaled back to its strength."""
    mask = choose(multiflow(weight, input_norm=input_norm))
    energy = (weight * input_norm).square_()
    kept = energy.masked_fill(~mask, 0.0).sum(1, keepdim=True)
    scale = energy.sum(1, keepdim=True).div_(kept.clamp(min=torch.finfo(kept.dtype).tiny)).sqrt_()
    return mask, (weight * torch.where(kept > 0, scale, 1.0)).masked_fill_(~mask, 0.0)
