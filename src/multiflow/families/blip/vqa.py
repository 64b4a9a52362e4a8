"""BLIP for questions about images (Li et al., arXiv 2201.12086).

The encoder reads the question grounded in the image, the decoder writes an answer and attends to the question's states.

LM    = sum over the tokens of an answer of -log p(token), labels smoothed by 0.1
score = -LM

Loss and ranking are those of `multiflow.families.answers`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from multiflow.families.answers import Answers, Ranking, VQAOutput, rank, read_answers, read_candidates, weigh
from multiflow.families.blip import parts
from multiflow.families.blip.batch import read_pairs
from multiflow.families.blip.losses import answer_losses
from multiflow.families.blip.task_configs import BlipVQAConfig


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
    ) -> VQAOutput:
        """Compute the loss of a batch of questions with their answers.

        Args:
            pixel_values: normalised images, one for each question.
            input_ids: questions; [ENC] is put in the place of the first token.
            attention_mask: which of their tokens are real (1).
            answer_ids: the answers, see `answers.read_answers`; [DEC] is put in the place of the first
                token.
            answer_mask: which of their tokens are real (1).
            answer_weights: how much each answer counts; 1 where not given.
            answers_per_question: how many answers each question has; 1 where not given.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        answers = read_answers(
            "BLIP",
            self.config.text["max_position_embeddings"],
            len(ids),
            answer_ids,
            answer_mask,
            answer_weights,
            answers_per_question,
        )
        states = self.encode_question(images, ids, mask)
        own = (states, mask) if answers.owner is None else (states[answers.owner], mask[answers.owner])
        return weigh(self._answer_losses(*own, answers), answer_weights, len(ids))

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
        answers = read_candidates("BLIP", self.config.text["max_position_embeddings"], candidate_ids, candidate_mask, k)
        states = self.encode_question(images, ids, mask)
        start = mask.new_full((len(states), 1), self.config.bos_token_id)
        first = self._decode(states, mask, Answers(start, torch.ones_like(start)))

        def losses(rows: Tensor, some: Answers) -> Tensor:
            return self._answer_losses(states[rows], mask[rows], some)

        return rank(self.text_decoder.cls(first[:, 0]), answers, k, losses, lambda _, lm: -lm)

    def _answer_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        decoded = self._decode(states, mask, answers)
        return answer_losses(self.text_decoder.cls, decoded, answers.ids, answers.mask)

    def _decode(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        """Run the decoder over answers; as many that follow each other belong to each row of the states."""
        hidden = (mask[:, None, None] == 0).to(states.dtype) * torch.finfo(states.dtype).min
        return parts.decode(self.text_decoder, self.config, answers.ids, answers.mask, states, hidden)
