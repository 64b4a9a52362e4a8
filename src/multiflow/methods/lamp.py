"""LAMP: layer-adaptive magnitude pruning (Lee et al., ICLR 2021, arXiv 2010.07611, equation 1).

    score_u = W_u^2 / sum of W_v^2 over all v with |W_v| >= |W_u|, inside the layer

ranked over all layers together. Weights of equal magnitude get equal scores, each counting all of them: the formula
does not depend on how ties are sorted. Sums are float64, for a layer has millions of terms.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.methods.declare import scorer


@scorer(allocation="global")
def lamp(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Squared magnitude relative to all larger weights of the layer."""
    squares, order = weight.double().square().flatten().sort()
    at_least = squares.flip(0).cumsum(0).flip(0)
    # equal squares share the sum of the first of them in ascending order, which holds them all
    first = torch.searchsorted(squares, squares, right=False).clamp(max=len(squares) - 1)  # beyond the end for NaN
    scores = torch.where(squares > 0, squares / at_least[first], 0.0)
    return torch.empty_like(scores).scatter_(0, order, scores).view_as(weight).to(weight.dtype)
