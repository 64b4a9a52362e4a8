"""The pretraining losses of X-VLM (arXiv 2111.08276), as functions of tensors.

ITC:  mean of the cross-entropies of ``image_feat @ text_feat.T / temp`` along rows and along columns, pair ``i`` right
ITM:  cross-entropy of match / no match over each pair and two hard negatives of it
MLM:  cross-entropy of the masked tokens
LM:   cross-entropy of each next token, with a target of ``1 - s`` on the right one and ``s / vocabulary`` on each other
box:  L1 distance and ``1 - GIoU``, summed over the regions and divided by their number

Differs from the published code: the temperature is a clamped copy; negatives are a function of the seed, not of a
running generator; a batch without masked tokens or without boxes costs 0 instead of dividing by 0. As published, the
smoothed target adds up to less than 1: PyTorch's ``label_smoothing`` gives the right token a share of ``s``, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multiflow.families.pairs import draw_negatives


def similarity(
    image_feat: Float[Tensor, "pairs dim"], text_feat: Float[Tensor, "pairs dim"], temp: Float[Tensor, ""]
) -> Float[Tensor, "pairs pairs"]:
    """Cosine of every image (row) with every text (column) over the temperature, in float32."""
    return image_feat.float() @ text_feat.float().T / temp.float().clamp(0.001, 0.5)


def contrastive_loss(
    sim: Float[Tensor, "pairs pairs"], positives: Bool[Tensor, "pairs pairs"] | None = None
) -> Float[Tensor, ""]:
    """ITC, from the similarities; pairs that show one image are each other's right answers, in equal shares."""
    target = torch.arange(len(sim), device=sim.device)
    if positives is not None:
        target = F.normalize(positives.float(), p=1, dim=1)
    return (F.cross_entropy(sim, target) + F.cross_entropy(sim.T, target)) / 2


def hard_negatives(
    sim: Float[Tensor, "pairs pairs"], seed: int, positives: Bool[Tensor, "pairs pairs"] | None = None
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """For every text a wrong image, and for every image a wrong text; see `draw_negatives`."""
    return draw_negatives(sim, sim.T, seed, floor=1e-5, positives=positives)


def masked_token_loss(
    logits: Float[Tensor, "texts slots vocab"], labels: Int[Tensor, "texts slots"]
) -> Float[Tensor, ""]:
    """MLM: mean over the slots whose label is not -100."""
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def next_token_losses(
    logits: Float[Tensor, "texts length vocab"], labels: Int[Tensor, "texts length"], smoothing: float = 0.0
) -> Float[Tensor, "texts length-1"]:
    """LM: the loss of each token from the second one on, told by those before it; 0 where the label is -100."""
    log_probs, target = logits[:, :-1].float().log_softmax(-1), labels[:, 1:]
    right = log_probs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    share = smoothing / logits.shape[-1]
    losses = -(1 - smoothing - share) * right - (share * log_probs.sum(-1) if smoothing else 0.0)
    return losses.masked_fill(target == -100, 0.0)


def box_losses(
    boxes: Float[Tensor, "texts 4"], target: Float[Tensor, "texts 4"], is_image: Int[Tensor, " texts"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L1 and GIoU losses of boxes (cx, cy, w, h in 0..1); texts with ``is_image = 1`` have no box."""
    boxes, target = boxes.float(), target.float()
    weight = torch.ones(len(boxes), device=boxes.device) if is_image is None else 1 - is_image.float()
    count = weight.sum().clamp(min=1)
    l1 = (boxes - target).abs().sum(1) * weight
    giou = (1 - generalized_iou(_corners(boxes), _corners(target))) * weight
    return l1.sum() / count, giou.sum() / count


def generalized_iou(a: Float[Tensor, "boxes 4"], b: Float[Tensor, "boxes 4"]) -> Float[Tensor, " boxes"]:
    """``IoU - (hull - union) / hull`` of each pair of boxes (x0, y0, x1, y1), in -1..1 (arXiv 1902.09630)."""
    overlap = _area(torch.cat([torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])], dim=1))
    hull = _area(torch.cat([torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])], dim=1))
    union = _area(a) + _area(b) - overlap
    tiny = torch.finfo(a.dtype).tiny
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _corners(boxes: Tensor) -> Tensor:
    centre, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
