"""X-VLM for visual question answering (arXiv 2111.08276): the question sees the image, a decoder tells the answer.

LM    = sum over the tokens of an answer of -log p(token)
score = log p(first token) - LM, in which the first token counts twice; then the softmax over the ``k`` answers

Loss and ranking are those of `multiflow.families.answers`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multiflow.families.answers import Answers, Ranking, VQAOutput, rank, read_answers, read_candidates, weigh
from multiflow.families.xvlm.batch import read_batch
from multiflow.families.xvlm.config import XVLMVQAConfig
from multiflow.families.xvlm.losses import next_token_losses
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.towers import XVLMTower
from multiflow.families.xvlm.vision import VisionEncoder


class XVLMForVQA(XVLMTower):
    """X-VLM that answers questions about images; answers begin with [CLS] and end with [SEP].

    >>> model = mf.task_model(xvlm, "vqa", image_size=384)                                            # doctest: +SKIP
    >>> best, _ = model.rank_answers(pixel_values, input_ids, mask, candidate_ids, candidate_mask)    # doctest: +SKIP
    """

    config_class = XVLMVQAConfig
    _tied_weights_keys = {  # noqa: RUF012 (the form that transformers reads)
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight"
    }

    config: XVLMVQAConfig

    def __init__(self, config: XVLMVQAConfig):
        super().__init__(config)
        text = config.text
        layers = text["layers"] - text["fusion_layer"]
        decoder = {**text, "layers": layers, "fusion_layer": 0, "encoder_width": text["width"]}
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(text, head=False)
        self.text_decoder = TextEncoder(decoder)
        self.post_init()

    def encode_question(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
    ) -> Float[Tensor, "questions length width"]:
        """Embed questions, each grounded in its image."""
        texts = self.text_encoder.bert.encode(input_ids, attention_mask)
        return self.text_encoder.bert.fuse(texts, attention_mask, self.encode_image(pixel_values))

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
            input_ids: questions.
            attention_mask: which of their tokens are real (1).
            answer_ids: the answers, see `multiflow.families.answers.read_answers`; they begin with [CLS].
            answer_mask: which of their tokens are real (1).
            answer_weights: how much each answer counts; 1 where not given.
            answers_per_question: how many answers each question has; 1 where not given.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch = read_batch(given, losses=False)
        mask, count = batch.attention_mask, len(batch.input_ids)
        answers = read_answers(
            "X-VLM",
            self.config.text["max_position_embeddings"],
            count,
            answer_ids,
            answer_mask,
            answer_weights,
            answers_per_question,
        )
        states = self.encode_question(batch.pixel_values, batch.input_ids, mask)
        return weigh(self._answer_losses(states, mask, answers), answer_weights, count)

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
            input_ids: questions.
            attention_mask: which of their tokens are real (1).
            candidate_ids: the answers, each as in `forward`.
            candidate_mask: which of their tokens are real (1).
            k: how many answers are scored whole, those of the likeliest first token; all if there are fewer.
        """
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        read_batch(given, losses=False)
        answers = read_candidates(
            "X-VLM", self.config.text["max_position_embeddings"], candidate_ids, candidate_mask, k
        )
        states = self.encode_question(pixel_values, input_ids, attention_mask)
        begin = candidate_ids[:1, :1].expand(len(states), 1)
        logits = self._decode(states, attention_mask, Answers(begin, torch.ones_like(begin)))[:, 0]

        def losses(rows: Tensor, some: Answers) -> Tensor:
            return self._answer_losses(states[rows], attention_mask[rows], some)

        best = rank(logits, answers, k, losses, torch.sub)
        return Ranking(best.indices, best.scores.softmax(1))

    def _answer_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        logits = self._decode(states, mask, answers)
        return next_token_losses(logits, answers.ids.masked_fill(answers.mask == 0, -100)).sum(1)

    def _decode(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        """Return the logits of each next token of the answers."""
        decoded = self.text_decoder.bert.decode(answers.ids, answers.mask, states, mask, answers.owner)
        return self.text_decoder.cls.predictions(decoded)
