"""Position embeddings of image patches at another resolution."""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError


@torch.no_grad()
def resize_positions(positions: Float[Tensor, "1+cells width"], side: int) -> Float[Tensor, "1+side*side width"]:
    """Interpolate position embeddings bicubically (``align_corners=False``); that of [CLS], the first one, is kept.

    Args:
        positions: of [CLS] and of a square grid of patches, row by row.
        side: patches along each side of the new grid; an equal one changes nothing.

    Returns:
        A tensor of its own, in the dtype of ``positions``.

    Raises:
        MultiflowError: the patches are no square grid.

    >>> resize_positions(torch.zeros(1 + 14 * 14, 768), 24).shape
    torch.Size([577, 768])
    """
    old = isqrt(max(len(positions) - 1, 0))
    if not len(positions) or 1 + old * old != len(positions):
        raise MultiflowError(
            f"there are {len(positions)} position embeddings; expected that of [CLS] and a square grid"
        )
    if side == old:
        return positions.detach().clone()
    grid = positions[1:].float().unflatten(0, (old, old)).permute(2, 0, 1)
    resized = F.interpolate(grid[None], size=(side, side), mode="bicubic", align_corners=False)[0]
    return torch.cat([positions[:1], resized.permute(1, 2, 0).flatten(0, 1).to(positions.dtype)])
