"""Wanda: pruning by weights and activations (Sun et al., ICLR 2024, arXiv 2306.11695, equation 1).

    score_ij = |W_ij| * a_j,    a_j = root mean square of input feature j

ranked inside every output row: each row of a layer drops the same number of weights.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer(allocation="uniform", pattern="per-row")
def wanda(weight: Float[Tensor, "out in"], *, input_norm: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """Magnitude times the norm of the input feature, ranked in every output row."""
    return weight.abs().mul_(input_norm)
