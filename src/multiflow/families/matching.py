"""Image-text matching (ITM), as X-VLM and BLIP train it: hard negatives drawn by similarity, and their loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def draw_negatives(
    image_sim: Float[Tensor, "pairs pairs"],
    text_sim: Float[Tensor, "pairs pairs"],
    seed: int,
    floor: float,
    positives: Bool[Tensor, "pairs pairs"] | None = None,
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """For every text a wrong image, and for every image a wrong text: the more similar the likelier.

    Args:
        image_sim: similarity of each image (row) with each text.
        text_sim: similarity of each text (row) with each image.
        seed: equal seeds give equal draws.
        floor: added to every probability, so that each wrong pair can be drawn.
        positives: which texts and images belong together and are never drawn, a symmetric matrix; by default its
            diagonal. What is drawn for a row of nothing but positives means nothing.
    """
    noise = torch.rand((2, *image_sim.shape), generator=torch.Generator().manual_seed(seed)).to(image_sim.device)
    weights = torch.stack([text_sim.softmax(1), image_sim.softmax(1)]) + floor
    if positives is None:
        weights.diagonal(dim1=1, dim2=2).zero_()
    else:
        weights.masked_fill_(positives, 0)
    images, texts = (weights / -noise.log()).argmax(2)  # the first to arrive among exponential clocks of these rates
    return images, texts


def matching_loss(logits: Float[Tensor, "rows 2"], pairs: int) -> Float[Tensor, ""]:
    """ITM: the first ``pairs`` rows match, the others do not."""
    target = (torch.arange(len(logits), device=logits.device) < pairs).long()
    return F.cross_entropy(logits.float(), target)
