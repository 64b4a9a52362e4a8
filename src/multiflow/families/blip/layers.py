"""Two layers of transformers' BLIP, mended for question answering; their parameters keep their names."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipEncoderLayer
from transformers.models.blip.modeling_blip_text import BlipTextAttention


class QuestionAttention(BlipTextAttention):
    """Cross-attention of answers to the real tokens of their questions.

    transformers 5.17 to 5.23 drop the mask of a cross-attention on the way; this one heeds it. Several answers to one
    question may follow each other: they are computed as one long answer, the question's keys and values once.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "answers length width"],
        attention_mask: Float[Tensor, "questions 1 1 tokens"] | None,
        encoder_hidden_states: Float[Tensor, "questions tokens width"],
        past_key_values: None,
    ) -> tuple[Float[Tensor, "answers length width"], Tensor]:
        """Let each answer attend to its question, whose mask is added to the scores."""
        per_question = hidden_states.reshape(len(encoder_hidden_states), -1, hidden_states.shape[-1])
        context, shares = self.self(
            per_question,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        return self.output(context.view_as(hidden_states), hidden_states), shares


class DropPathLayer(BlipEncoderLayer):
    """A layer of the vision tower with stochastic depth (Huang et al., arXiv 1603.09382).

    In training each of its two branches is left out of a share ``rate`` of the images, and counts ``1 / (1 - rate)``
    in the others.
    """

    def __init__(self, config: BlipVisionConfig, rate: float):
        super().__init__(config)  # type: ignore[arg-type]
        self.rate = rate

    def forward(
        self, hidden_states: Float[Tensor, "images tokens width"], **kwargs: Any
    ) -> Float[Tensor, "images tokens width"]:
        """Add both branches to the states."""
        attended, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self._thin(attended)
        return hidden_states + self._thin(self.mlp(self.layer_norm2(hidden_states)))

    def _thin(self, branch: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)
