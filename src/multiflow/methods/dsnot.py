"""DSnoT: dynamic sparse no training, a mask that is mended weight by weight (Zhang et al., ICLR 2024, arXiv
2310.08915, equations 5 and 6).

In every row of a layer, with m and var the mean and variance of its inputs over the tokens and a their root mean
square, and the mean error of the row's output ``e = sum of w_j m_j over what is dropped``, repeat

    bring back    the dropped j with the largest  sign(e) w_j m_j / var_j
    drop          the kept j with the smallest    |w_j| a_j    of those with  sign(e) w_j m_j < 0

each of which lowers \\|e\\|, until ``|e| <= tolerance`` or for 50 rounds. A row where nothing kept has the other sign
stays as it is from then on. It starts from the mask of Wanda (`start="wanda"`) or of magnitude; no weight changes, and
every row, or group of N:M, keeps as many as before.

Differences from the published code: each round looks at the mask as it is, where theirs walks two lists that are sorted
once; a step that would not make |e| smaller is not taken, where theirs may pass zero; and m is a mean over tokens, so
the tolerance is theirs (0.1 for a sum over 2,048 tokens) divided by 2,048. Under N:M both weights are of one group.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.types import NofM
from multiflow.methods.declare import Choose, fitter
from multiflow.methods.least_squares import Fitted

STARTS = ("wanda", "magnitude")


def check(start: str, rounds: int, tolerance: float) -> None:
    """Refuse what says nothing."""
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    for name, value in (("rounds", rounds), ("tolerance", tolerance)):
        if not value >= 0:
            raise MultiflowError(f"{{{name}}} {value} was given; expected a number of at least 0", field=name)


@fitter(allocation="uniform", pattern="per-row", check=check)
def dsnot(
    weight: Float[Tensor, "out in"],
    choose: Choose,
    *,
    input_norm: Float[Tensor, " in"],
    input_mean: Float[Tensor, " in"],
    start: Literal["wanda", "magnitude"] = "wanda",
    rounds: int = 50,
    tolerance: float = 0.1 / 2048,
) -> Fitted:
    """Wanda's mask, then weights traded one by one until each row's mean output is that of the dense layer."""
    score = weight.abs() * input_norm
    mask = choose(score if start == "wanda" else weight.abs()).to(weight.device).clone()
    group = choose.pattern.of if isinstance(choose.pattern, NofM) else 0
    trade(mask, weight, score, input_norm, input_mean, rounds, tolerance, group)
    return mask, weight.masked_fill(~mask, 0.0)


def trade(
    mask: Bool[Tensor, "out in"],
    weight: Float[Tensor, "out in"],
    score: Float[Tensor, "out in"],
    norm: Float[Tensor, " in"],
    mean: Float[Tensor, " in"],
    rounds: int,
    tolerance: float,
    group: int = 0,
) -> None:
    """Mend a mask in place; with ``group``, inside groups of that many inputs."""
    every, inputs = torch.arange(len(mask), device=mask.device), torch.arange(mask.shape[1], device=mask.device)
    effect = weight * mean
    variance = (norm.square() - mean.square()).clamp(min=torch.finfo(norm.dtype).tiny)
    on = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    for _ in range(rounds):
        error = (effect * ~mask).sum(1)
        signed = effect * error.sign()[:, None]
        into = (signed / variance).masked_fill(mask, -torch.inf).argmax(1)
        price = score.masked_fill(~mask | (signed >= 0), torch.inf)
        if group:
            price.masked_fill_((inputs // group)[None] != (into // group)[:, None], torch.inf)
        cost, out = price.min(1)
        after = error - effect[every, into] + effect[every, out]
        on &= cost.isfinite() & ~mask[every, into] & (error.abs() > tolerance) & (after.abs() < error.abs())
        if not on.any():
            break
        mask[every[on], into[on]] = True
        mask[every[on], out[on]] = False
