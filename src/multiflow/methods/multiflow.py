"""MULTIFLOW: multimodal flow pruning (Farina et al., CVPR 2024, arXiv 2404.05621, section 4).

A linear layer is a bipartite graph whose edges are its weights. The importance of a neuron is the mean signal on its
edges, the importance of a weight that of the path through it:

    I_out[i] = mean over j of |W_ij| a_j
    I_in[j]  = a_j * mean over i of |W_ij|
    score_ij = I_out[i] * |W_ij| * I_in[j],    a_j = root mean square of input feature j

Layers drop what the ``multimodal`` allocation gives them: magnitude pruning inside every modality group.
Differences from the published code: statistics stream instead of being stored, a shared weight sums the inputs of all
its users, padded tokens are left out by declaration, and the calibration serves every sparsity.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer("multiflow", allocation="multimodal")
def multiflow(weight: Float[Tensor, "out in"], *, input_norm: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """Magnitude times the information flow through both neurons it connects; multimodal distribution."""
    magnitude = weight.abs()
    flow_out = (magnitude @ input_norm).div_(magnitude.shape[1])
    flow_in = magnitude.mean(0).mul_(input_norm)
    return magnitude.mul_(flow_out[:, None]).mul_(flow_in)
