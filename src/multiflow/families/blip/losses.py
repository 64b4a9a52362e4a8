"""The pretraining losses of BLIP (Li et al., arXiv 2201.12086), as functions of tensors.

ITC:  cross-entropy of each image (text) with the momentum features of all texts (images) of the batch and the queue;
      the target is the pair, mixed with a share ``alpha`` of what the momentum model believes
ITM:  cross-entropy of match / no match over each pair and two hard negatives of it
LM:   cross-entropy of each next token, labels smoothed by 0.1

Differs from the published code: the temperature is a clamped copy; negatives are a function of the seed, not of a
running generator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multiflow.families.pairs import draw_negatives

LABEL_SMOOTHING = 0.1


def similarity(
    features: Float[Tensor, "pairs dim"], others: Float[Tensor, "dim others"], temp: Float[Tensor, ""]
) -> Float[Tensor, "pairs others"]:
    """Cosines over the temperature, in float32."""
    return features.float() @ others.float() / temp.float().clamp(0.001, 0.5)


def soft_targets(
    momentum_sim: Float[Tensor, "pairs others"],
    alpha: float,
    positives: Bool[Tensor, "pairs others"] | None = None,
) -> Float[Tensor, "pairs others"]:
    """``alpha softmax(momentum_sim) + (1 - alpha)`` spread over the positives, by default the diagonal alone."""
    if positives is None:
        hard = torch.zeros_like(momentum_sim).fill_diagonal_(1 - alpha)
    else:
        hard = (1 - alpha) * positives / positives.sum(1, keepdim=True)
    return hard + alpha * momentum_sim.softmax(1) if alpha else hard


def hard_negatives(
    image_sim: Float[Tensor, "pairs pairs"],
    text_sim: Float[Tensor, "pairs pairs"],
    seed: int,
    positives: Bool[Tensor, "pairs pairs"] | None = None,
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """For every text a wrong image, and for every image a wrong text; see `draw_negatives`."""
    return draw_negatives(image_sim, text_sim, seed, floor=1e-4, positives=positives)


def language_loss(
    logits: Float[Tensor, "texts length vocab"],
    input_ids: Int[Tensor, "texts length"],
    attention_mask: Int[Tensor, "texts length"],
) -> Float[Tensor, ""]:
    """LM: each real token from those before it, mean over all of them; the first token is given."""
    target = input_ids.masked_fill(attention_mask == 0, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), label_smoothing=LABEL_SMOOTHING)


def answer_losses(
    head: Callable[[Tensor], Tensor],
    states: Float[Tensor, "answers length width"],
    answer_ids: Int[Tensor, "answers length"],
    answer_mask: Int[Tensor, "answers length"],
) -> Float[Tensor, " answers"]:
    """LM of each text by itself: the sum over its real tokens but the first, which is given.

    Args:
        head: states -> logits; it is asked about the states before real tokens only.
        states: of the decoder.
        answer_ids: the texts.
        answer_mask: which of their tokens are real (1).
    """
    real = answer_mask[:, 1:].bool()
    logits = head(states[:, :-1][real]).float()
    each = F.cross_entropy(logits, answer_ids[:, 1:][real], reduction="none", label_smoothing=LABEL_SMOOTHING)
    return torch.zeros_like(real, dtype=each.dtype).masked_scatter(real, each).sum(1)
