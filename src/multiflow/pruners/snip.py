"""SNIP: connection sensitivity (Lee et al., ICLR 2019, arXiv 1810.02340, equation 6).

    score_ij = |W_ij * g_ij|,    g = mean over batches of the gradient of the pretraining loss

ranked over all layers together.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.pruners.base import scorer


@scorer(allocation="global")
def snip(weight: Float[Tensor, "out in"], *, gradient: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Smallest effect of a weight's removal on the pretraining loss, to first order."""
    return (weight * gradient).abs_()
