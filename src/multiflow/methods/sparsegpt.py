"""SparseGPT: one pass over the columns, each error made up for by the columns to its right (Frantar and Alistarh,
ICML 2023, arXiv 2301.00774).

With H the damped second moment of a layer's inputs and U the upper Cholesky factor of its inverse, ``H^-1 = U' U``,
columns go from left to right in blocks. When a block begins, its mask drops the lowest

    score_ij = W_ij^2 / U_jj^2

of the weights as they are by then: over the whole block, or row by row; of N:M the lowest in each row and group when
the group begins. Then for each column j, with q what the mask leaves of it,

    e = (w - q) / U_jj,    every later column k of the row loses e U_jk

so that the rows keep the outputs of the dense layer as far as the columns to the right can.
Columns whose inputs are always zero are emptied first.

Differences from the published code: a layer drops exactly its budget, shared out over the blocks by cumulative
rounding, instead of one weight too many in every block; and a factor that fails says so. Damping is 0.01 times the mean
of the diagonal, as theirs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import NofM, PerRow
from multiflow.methods.costs import CHOOSING, LayerCost, inversion, passes, product
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, check_ridge, no_inverse


def check(block: int, ridge: float) -> None:
    """Refuse what gives no mask, or no inverse."""
    if block < 1:
        raise MultiflowError(f"{{block={block}}} was given; expected at least 1 column", field="block")
    check_ridge(ridge)


def cost(rows: int, columns: int, kept: float, block: int) -> LayerCost:
    """Two factors and an inverse in float64, a block's columns one by one, and a product for what is behind it."""
    inside = passes(rows, columns, 1.1 * block + CHOOSING)
    held = LayerCost(held=20 * columns**2)  # of the factors in float64, beside what an inverse takes
    return 3 * inversion(columns) + 0.5 * product(rows, columns) + inside + held


@fitter(allocation="uniform", check=check, cost=cost)
def sparsegpt(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    block: int = 128,
    ridge: float = 1e-2,
) -> Fitted:
    """Column by column, each error made up for by later columns; masks chosen block by block on the way."""
    columns = weight.shape[1]
    found, moment = weight.clone(), input_moment.clone()
    dead = moment.diagonal() == 0
    moment.diagonal()[dead] = 1.0
    found[:, dead] = 0.0
    factor = upper(moment, ridge, choose.layer).to(weight)
    mask = torch.ones_like(weight, dtype=torch.bool)
    group = choose.pattern.of if isinstance(choose.pattern, NofM) else block
    block = -(-block // group) * group
    gone = 0
    for begin, end in pairwise([*range(0, columns, block), columns]):
        errors = torch.empty_like(found[:, begin:end])
        for j in range(begin, end):
            if (j - begin) % group == 0:
                part = slice(j, min(j + group, end))
                goal = share(choose, part.stop, weight)
                scores = (found[:, part] / factor.diagonal()[part]).square_()
                mask[:, part] = choose.within(scores, goal - gone)
                gone = goal
            error = found[:, j].masked_fill(mask[:, j], 0.0) / factor[j, j]
            found[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - begin] = error
        found[:, end:] -= errors @ factor[begin:end, end:]
    return mask, found.masked_fill_(~mask, 0.0)


def share(choose: Choose, until: int, weight: Tensor) -> int:
    """How many weights are gone after that many columns: their share, rounded, the same in every row if need be."""
    rows, columns = weight.shape
    if isinstance(choose.pattern, PerRow):
        return round(choose.count // rows * until / columns) * rows
    return round(choose.count * until / columns)


def upper(moment: Float[Tensor, "in in"], ridge: float, layer: str) -> Float[Tensor, "in in"]:
    """The upper Cholesky factor of the inverse of the damped moment, worked out in float64."""
    damped = moment.double()
    damped.diagonal().add_(ridge * damped.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if failed:
        raise no_inverse(layer, ridge)
    return factor
