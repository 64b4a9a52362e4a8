"""ALPS: mask and weights together by operator splitting (Meng et al., NeurIPS 2024, arXiv 2406.07831).

With G the damped second moment of a layer's inputs at unit diagonal, B0 the weights scaled to it (`scaled`), and
``Y = G B0``, ADMM on ``min tr (B - B0)' G (B - B0)`` over B under the budget, split into B and its sparse copy Z:

    B <- (G + rho I)^-1 (Y - U + rho Z)
    Z <- the largest |B + U / rho|, as many as the budget says
    U <- U + rho (B - Z)

From every third step rho grows by 30, 20 or 10 %, as 10 %, 0.5 % or any of the kept set changed in those three; as long
as none ever has, it falls to a fifth and the steps begin anew, so that rho starts just small enough. It ends when the
kept set stands still, or from step 30 on when less than 0.03 % of it changes. The weights of the mask are then refitted
by conjugate gradients (`refit`), which the paper does too. One eigendecomposition of G serves every rho.

Differences from the published code: counts are exact for every pattern, the eigendecomposition alone is float64, and
the steps of conjugate gradients are 20 instead of 10. Damping is 0.01 times the mean of the diagonal, as theirs.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.methods.costs import CHOOSING, LayerCost, product, refitting
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, Scaled, check_ridge, no_inverse, refit, scaled

START, LOWER, EVERY, EARLIEST, STILL = 0.1, 5, 3, 30, 3e-4
USUAL = 40  # steps until the kept set stands still, on most layers
EIGEN = 12  # operations of an eigendecomposition for each number cubed, in those of an inverse
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Share of the kept set that changed in three steps -> by how much rho grows."""


def check(steps: int, ridge: float) -> None:
    """Refuse what gives no mask, or no inverse."""
    if steps < 1:
        raise MultiflowError(f"{{steps={steps}}} was given; expected at least 1", field="steps")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, steps: int, iterations: int) -> LayerCost:
    """One eigendecomposition in float64, two products and a choice a step, of as many steps as it usually takes."""
    usual = min(steps, USUAL)
    spectrum = LayerCost(solves=EIGEN * columns**3, held=24 * columns**2)  # in float64
    a_step = product(rows, columns) + product(rows, columns, CHOOSING + 6)
    return spectrum + usual * a_step + refitting(rows, columns, iterations)


@fitter(allocation="uniform", check=check, cost=cost)
def alps(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    ridge: float = 1e-2,
    steps: int = 300,
    iterations: int = 20,
) -> Fitted:
    """Operator splitting between the outputs of a layer and its budget, with a penalty that grows; then a refit."""
    layer = scaled(weight, input_moment, ridge)
    mask, found = split(layer, choose, steps, ridge)
    return mask, refit(layer.weight, mask, layer.moment, iterations, found).div_(layer.scale)


def split(
    layer: Scaled, choose: Choose, steps: int, ridge: float
) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]:
    """Run ADMM; return the support of the largest weights and the weights, at unit diagonal."""
    dense = layer.weight
    values, vectors = torch.linalg.eigh(layer.moment.double())
    if not values[0] > 0:
        raise no_inverse(choose.layer, ridge)
    values, vectors = values.to(dense), vectors.to(dense)
    target = dense @ layer.moment  # Y
    rho, moved = START, False
    found, sparse, dual = dense, kept_part(dense, choose), torch.zeros_like(dense)
    before = sparse != 0
    for step in range(1, steps + 1):
        found = ((target - dual + rho * sparse) @ vectors).div_(values + rho) @ vectors.T
        sparse = kept_part(found + dual / rho, choose)
        dual += rho * (found - sparse)
        if step % EVERY:
            continue
        support = sparse != 0
        size, changed = max(1, int(support.sum())), int((support ^ before).sum())
        before = support
        if changed:
            moved = True
            rho *= next(by for share, by in GROWTH if changed / size > share)
        elif moved:
            break
        else:
            rho /= LOWER
            found, sparse, dual = dense, kept_part(dense, choose), torch.zeros_like(dense)
        if step >= EARLIEST and changed / size < STILL:
            break
    return choose(found.abs()), found


def kept_part(values: Float[Tensor, "out in"], choose: Choose) -> Float[Tensor, "out in"]:
    """Zero what the budget drops of them."""
    return values * choose(values.abs())
