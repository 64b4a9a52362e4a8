"""What a pruner's function returned, checked: what does not fit is an error that names the pruner and the layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.methods import Pruner


def check_pair(pruner: Pruner, given: Any) -> tuple[Any, Any]:
    """Return the two things that a fitter or a solver gives, masks and new weights."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        number = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a {type(given).__name__}{number}; a {pruner.kind} returns two things, "
            "masks and new weights"
        )
    return given[0], given[1]


def check_named(pruner: Pruner, what: str, given: Any) -> Mapping[str, Any]:
    """Return what a pruner gives for all layers together, which is to have their names."""
    if not isinstance(given, Mapping):
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a {type(given).__name__}; expected a dict from layer name to its {what}"
        )
    return given


def check_fitted(
    pruner: Pruner, layer: str, mask: Any, weight: Any, shape: tuple[int, ...], count: int | None = None
) -> Tensor:
    """Return the new weight of a layer with plus zero where the mask drops.

    Args:
        pruner, layer: whose they are.
        mask: bool, True = kept.
        weight: finite.
        shape: ``(out, in)`` of both.
        count: how many weights the mask is to drop; None where only all layers together have a number.
    """
    for what, value in (("a mask", mask), ("weights", weight)):
        if not isinstance(value, Tensor) or value.shape != shape:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MultiflowError(f"pruner '{pruner.name}' gave {what} {given} for layer '{layer}'; expected {shape}")
    if mask.dtype != torch.bool:
        raise MultiflowError(
            f"pruner '{pruner.name}' gave a mask of {mask.dtype} for layer '{layer}'; expected torch.bool, True = kept"
        )
    if count is not None and (dropped := int((~mask).sum())) != count:
        raise MultiflowError(f"pruner '{pruner.name}' drops {dropped} weights of layer '{layer}'; expected {count}")
    if not weight.isfinite().all():
        raise MultiflowError(
            f"pruner '{pruner.name}' gave NaN or Inf weights for layer '{layer}'; check its weights and data"
        )
    return weight.detach().masked_fill(~mask.to(weight.device), 0.0)


def check_scores(pruner: Pruner, layer: str, scores: Any, shape: tuple[int, ...], *, some_gone: bool = False) -> Tensor:
    """Return the scores of a layer in float32 or better; those that cannot be ranked are an error that names it.

    With ``some_gone`` a score may be -Inf: that of a weight that is gone already.
    """
    if not isinstance(scores, Tensor) or scores.shape != shape:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise MultiflowError(f"pruner '{pruner.name}' gave scores {given} for layer '{layer}'; expected {shape}")
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    if some_gone:
        fine = not scores.numel() or bool(scores.max() < torch.inf)  # false for NaN as well
    else:
        fine = bool(scores.sum().isfinite() or scores.isfinite().all())
    if not fine:
        raise MultiflowError(
            f"pruner '{pruner.name}' gave NaN or Inf scores for layer '{layer}'; check its weights and data"
        )
    return scores
