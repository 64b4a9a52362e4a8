"""Refit: one-shot least-squares update of the weights that a mask keeps (layer by layer, by conjugate gradients).

``multiflow-refit`` drops what ``multiflow`` drops, then refits what it keeps to the outputs of the dense layer: with H
the second moment of the layer's inputs,

    minimise   tr (X - W) (H + ridge mean(diag H) I) (X - W)'   over X    subject to    X_ij = 0 where the mask drops

Every output row is a problem of its own; all rows take their steps of conjugate gradients together, preconditioned by
the diagonal: a step costs one matrix product, and no system is factored (`multiflow.methods.least_squares`).

Ideas: optimal brain surgeon a layer at a time (arXiv 1705.07565), SparseGPT (arXiv 2301.00774), which updates while it
chooses, and the update of a given mask by ADMM (Boza, arXiv 2401.02938). Here it is conjugate gradients.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from multiflow.methods.costs import CHOOSING, LayerCost, passes, refitting
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted, check_ridge, damped, refit
from multiflow.methods.multiflow import multiflow


def cost(rows: int, columns: int, kept: float, iterations: int) -> LayerCost:
    """One choice, and the refit."""
    return passes(rows, columns, 3 * CHOOSING) + refitting(rows, columns, iterations)


@fitter("multiflow-refit", allocation="multimodal", check=check_ridge, cost=cost)
def multiflow_refit(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_moment: Float[Tensor, "in in"],
    ridge: float = 1e-2,
    iterations: int = 20,
) -> Fitted:
    """MULTIFLOW's masks, and the kept weights refitted so that every layer's outputs stay."""
    mask = choose(multiflow(weight, input_norm=input_moment.diagonal().sqrt()))
    return mask, refit(weight, mask, damped(input_moment, ridge), iterations)
