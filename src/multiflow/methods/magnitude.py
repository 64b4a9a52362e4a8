"""Magnitude pruning, in three scopes.

    score_ij = |W_ij|

``magnitude`` ranks all layers together (one-shot magnitude pruning, OMP), ``magnitude-layer`` gives every layer the
same sparsity (LocalMP), ``magnitude-modality`` ranks the layers of each group together, so that every modality ends at
the same sparsity: the multimodal distribution of MULTIFLOW (arXiv 2404.05621, section 4.3) used as the mask itself.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer, variant


@scorer(allocation="global")
def magnitude(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Smallest magnitude over all layers together."""
    return weight.abs()


variant("magnitude-layer", "magnitude", "Smallest magnitude, the same sparsity in every layer.", allocation="uniform")
variant("magnitude-modality", "magnitude", "Smallest magnitude, separately in each group.", allocation="multimodal")
