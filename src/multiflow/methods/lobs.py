"""Iterated L-OBS: optimal brain surgeon layer by layer, in steps (after Dong et al., NeurIPS 2017, arXiv 1705.07565).

With H the second moment of a layer's inputs, damped as in `refit`, and X the weights as they are by then,

    score_ij = |X_ij| / sqrt([H^-1]_jj)

is the root of the squared error of the layer's outputs that dropping X_ij costs when the rest of its row makes up for
it. Each round drops the lowest scores, the same share of what is left, and refits what it keeps to the outputs of the
dense layer (`refit`). Weights that are gone stay gone.

L-OBS drops everything by one look at the dense weights; its scores hold for one weight at a time, which is why rounds
help. OBC (arXiv 2208.11580) and SparseGPT (arXiv 2301.00774) update the inverse after every weight or column; here the
inverse of all inputs ranks throughout, and every refit is to the dense weights, so that errors do not add up. One
calibration pass of the dense model serves all rounds and all sparsities.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.methods.costs import CHOOSING, LayerCost, inversion, passes, refitting
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, check_ridge, damped, no_inverse, refit


def check(rounds: int, ridge: float) -> None:
    """Refuse what gives no mask, or no inverse."""
    if rounds < 1:
        raise MultiflowError(f"{{rounds={rounds}}} was given; expected at least 1", field="rounds")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, rounds: int, iterations: int) -> LayerCost:
    """One inverse in float64, and a choice and a refit a round."""
    a_round = passes(rows, columns, CHOOSING + 3) + refitting(rows, columns, iterations)
    return 2 * inversion(columns) + rounds * a_round


@fitter(allocation="uniform", check=check, cost=cost)
def lobs(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    rounds: int = 10,
    ridge: float = 1e-2,
    iterations: int = 20,
) -> Fitted:
    """Smallest rise of the error of a layer's outputs, in rounds; refits the kept weights after each."""
    moment = damped(input_moment, ridge)
    try:
        spread = torch.cholesky_inverse(torch.linalg.cholesky(moment.double())).diagonal().rsqrt().to(weight)
    except torch.linalg.LinAlgError as error:
        raise no_inverse(choose.layer, ridge) from error
    mask, found = torch.ones_like(weight, dtype=torch.bool), weight
    for done in range(1, rounds + 1):
        mask = choose((found.abs() * spread).masked_fill(~mask, -torch.inf), done / rounds)
        found = refit(weight, mask, moment, iterations, found)
    return mask, found
