"""ADMM with a gradual mask (Boza, TMLR 2024, arXiv 2401.02938).

With G the damped second moment of a layer's inputs at unit diagonal and B0 the weights scaled to it (`scaled`), and
``P = (G + I)^-1``, start from V = B0, U = 0 and repeat

    s_t = s - s (1 - t / 15)^3 for the first 15 steps, then s
    mask: the largest |V + U|, a share 1 - s_t of them, fixed after the last of those steps
    Z = (V + U) where the mask keeps, else 0
    U <- U + V - Z
    V <- (B0 G + Z - U) P

for 20 steps; the result is Z. All of it costs one inverse and 20 products.

Differences from the published code: the mask grows over the whole layer too (there, only row-wise masks are gradual:
the whole-layer branch takes the final sparsity from the first step on), counts are exact, and 0 is never kept for want
of scores. A mask grows by the same rule for every pattern: what `choose` drops when a share ``done`` of it is done.
Damping is 0.1 times the mean of the diagonal, as theirs: ten times that of ALPS and SparseGPT.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.methods.costs import CHOOSING, LayerCost, inversion, passes, product
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, check_ridge, inverse, scaled


def check(steps: int, gradual: int, ridge: float) -> None:
    """Refuse what gives no mask, or no inverse."""
    if not 1 <= gradual <= steps:
        raise MultiflowError(f"gradual {gradual} of steps {steps} was given; expected 1 <= gradual <= steps")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, steps: int, gradual: int) -> LayerCost:
    """One inverse, and a product a step; a choice in those in which the mask grows."""
    return inversion(columns) + (steps + 2) * product(rows, columns, 4) + gradual * passes(rows, columns, CHOOSING)


@fitter(allocation="uniform", check=check, cost=cost)
def admm(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    steps: int = 20,
    gradual: int = 15,
    ridge: float = 1e-1,
) -> Fitted:
    """Operator splitting with one penalty and a mask that fills up on the way: one inverse, a product a step."""
    layer = scaled(weight, input_moment, ridge)
    eye = torch.eye(len(layer.moment), dtype=layer.moment.dtype, device=layer.moment.device)
    solve = inverse(layer.moment + eye, choose.layer, ridge)
    fixed = layer.weight @ layer.moment @ solve
    sparsity = choose.count / weight.numel()
    found, dual = layer.weight, torch.zeros_like(layer.weight)
    for step in range(1, steps + 1):
        ahead = found + dual
        if step <= gradual:
            mask = choose(ahead.abs(), done_at(sparsity, step / gradual))
        sparse = ahead * mask
        dual = ahead - sparse
        found = fixed + (sparse - dual) @ solve
    return mask, sparse.div_(layer.scale).masked_fill_(~mask, 0.0)


def done_at(sparsity: float, time: float) -> float:
    """The share that is done when the cubic schedule has come that far, as `Choose` counts it: in the logarithm."""
    if time >= 1 or not 0 < sparsity < 1:
        return 1.0
    return math.log1p(-sparsity * (1 - (1 - time) ** 3)) / math.log1p(-sparsity)
