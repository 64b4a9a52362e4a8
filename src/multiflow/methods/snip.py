"""SNIP: connection sensitivity (Lee et al., ICLR 2019, arXiv 1810.02340, equation 6), in one step and in many.

    score_ij = |W_ij * g_ij|,    g = mean over batches of the gradient of the pretraining loss

ranked over all layers together. ``itersnip`` (iterative SNIP, de Jorge et al., ICLR 2021, arXiv 2006.09081) scores
again at every step, on the network as it is pruned by then; weights that are gone stay gone.

Differences from the published code: the counts of intermediate steps are rounded, not truncated, and a linear schedule
ends at the target.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer, variant


@scorer(allocation="global")
def snip(weight: Float[Tensor, "out in"], *, gradient: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Smallest effect of a weight's removal on the pretraining loss, to first order."""
    return (weight * gradient).abs_()


variant("itersnip", "snip", "SNIP in steps, each on the network pruned so far.", stepwise=True)
