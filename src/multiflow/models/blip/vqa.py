"""BLIP for questions about images (Li et al., arXiv 2201.12086).

The encoder reads the question grounded in the image, the decoder writes an answer and attends to the question's states.

loss  = sum over answers of weight x LM / number of questions, labels smoothed by 0.1
rank  = of a list of answers the ``k`` whose first token is likeliest, sorted by minus their (smoothed) LM; LM is a sum
        over tokens

Differs from the published code: where first tokens are equally likely, answers are taken in the order of the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from multiflow.models.blip import parts
from multiflow.models.blip.batch import read_answers, read_pairs
from multiflow.models.blip.losses import answer_losses
from multiflow.models.blip.task_configs import BlipVQAConfig

ROWS = 512  # answers that are scored at once: bounds the memory of the logits


@dataclass
class BlipVQAOutput(ModelOutput):
    """``loss``; ``answer_losses`` (answers,), the LM of each answer."""

    loss: Tensor | None = None
    answer_losses: Tensor | None = None


class Ranking(NamedTuple):
    """The best answers of each question, best first: their places in the list, and minus their LM."""

    indices: Int[Tensor, "questions k"]
    scores: Float[Tensor, "questions k"]


class BlipForVQA(PreTrainedModel):
    """Image and question to answer; answers end with [SEP].

    >>> model = mf.task_model(blip, "vqa", image_size=384)                                            # doctest: +SKIP
    >>> best, _ = model.rank_answers(pixel_values, input_ids, mask, candidate_ids, candidate_mask)    # doctest: +SKIP
    """

    config_class = BlipVQAConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["BlipEncoderLayer", "DropPathLayer", "BlipTextLayer"]  # noqa: RUF012

    config: BlipVQAConfig

    def __init__(self, config: BlipVQAConfig):
        super().__init__(config)
        self.vision_model = parts.vision_model(config, config.drop_path)
        self.text_encoder = parts.text_encoder(config)
        self.text_decoder = parts.answer_decoder(config)
        self._tied_weights_keys = parts.shared_names(self)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"] | None = None,
        input_ids: Int[Tensor, "questions length"] | None = None,
        attention_mask: Int[Tensor, "questions length"] | None = None,
        answer_ids: Int[Tensor, "answers answer_length"] | None = None,
        answer_mask: Int[Tensor, "answers answer_length"] | None = None,
        answer_weights: Float[Tensor, " answers"] | None = None,
        answers_per_question: Int[Tensor, " questions"] | None = None,
    ) -> BlipVQAOutput:
        """Compute the loss of a batch of questions.

        Args:
            pixel_values: normalised images, one for each question.
            input_ids: questions; [ENC] is put in the place of the first token.
            attention_mask: which of their tokens are real (1).
            answer_ids: the answers of the first question, then those of the second, ...; [SEP] is their last token,
                [DEC] is put in the place of the first one.
            answer_mask: which of their tokens are real (1).
            answer_weights: how much each answer counts; by default 1.
            answers_per_question: how many answers belong to each question; by default 1.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        answers = read_answers(self.config, len(ids), answer_ids, answer_mask, answer_weights, answers_per_question)
        owner = torch.arange(len(ids), device=ids.device).repeat_interleave(
            answers.per_question.to(ids.device), output_size=len(answers.ids)
        )
        states = self.encode_question(images, ids, mask)
        each = self._answer_losses(states[owner], mask[owner], answers.ids, answers.mask)
        return BlipVQAOutput(loss=(each * answers.weights.to(each)).sum() / len(ids), answer_losses=each)

    def encode_question(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
    ) -> Float[Tensor, "questions length width"]:
        """Embed questions, [ENC] as their first token, each grounded in its image."""
        images = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return parts.ground(self.text_encoder, self.config, input_ids, attention_mask, images)

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
        candidate_ids: Int[Tensor, "candidates answer_length"],
        candidate_mask: Int[Tensor, "candidates answer_length"],
        k: int = 128,
    ) -> Ranking:
        """Rank a list of answers for each question; see the top of this file.

        Args:
            pixel_values: normalised images, one for each question.
            input_ids: questions, as in `forward`.
            attention_mask: which of their tokens are real (1).
            candidate_ids: the answers, each as in `forward`.
            candidate_mask: which of their tokens are real (1).
            k: how many answers are scored whole, those of the likeliest first token; all if there are fewer.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        answers = read_answers(self.config, len(candidate_ids), candidate_ids, candidate_mask)
        states = self.encode_question(images, ids, mask)
        likely = self._first_tokens(states, mask)[:, answers.ids[:, 1]].sort(dim=1, descending=True, stable=True)
        chosen = likely.indices[:, :k].sort(dim=1).values
        at_once = max(1, ROWS // chosen.shape[1])
        scores = []
        for rows in torch.arange(len(ids), device=ids.device).split(at_once):
            some = chosen[rows].flatten()
            each = self._answer_losses(states[rows], mask[rows], answers.ids[some], answers.mask[some])
            scores.append(-each.view(len(rows), -1))
        best = torch.cat(scores).sort(dim=1, descending=True, stable=True)
        return Ranking(chosen.gather(1, best.indices), best.values)

    def _first_tokens(self, states: Tensor, mask: Tensor) -> Float[Tensor, "questions vocab"]:
        """How likely each token is to begin the answer."""
        start = mask.new_full((len(states), 1), self.config.bos_token_id)
        first = self._decode(states, mask, start, torch.ones_like(start))
        return self.text_decoder.cls(first[:, 0]).float().softmax(1)

    def _answer_losses(self, states: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor) -> Tensor:
        decoded = self._decode(states, mask, answer_ids, answer_mask)
        return answer_losses(self.text_decoder.cls, decoded, answer_ids, answer_mask)

    def _decode(self, states: Tensor, mask: Tensor, answer_ids: Tensor, answer_mask: Tensor) -> Tensor:
        """Run the decoder over answers; as many that follow each other belong to each question."""
        hidden = (mask[:, None, None] == 0).to(states.dtype) * torch.finfo(states.dtype).min
        return parts.decode(self.text_decoder, self.config, answer_ids, answer_mask, states, hidden)
