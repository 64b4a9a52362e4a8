"""X-VLM for visual question answering (arXiv 2111.08276): the question sees the image, a decoder tells the answer.

LM    = sum over the tokens of an answer of -log p(token)
loss  = sum over answers of weight x LM / number of questions
rank  = of a list of answers the ``k`` whose first token is likeliest, sorted by log p(first token) - LM, in which the
        first token counts twice; their scores are the softmax of these sums

Differs from the published code: where first tokens are equally likely, the answers that stand earlier in the list are
left out, as everywhere in this library; there it is a matter of chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import ModelOutput

from multiflow.errors import MultiflowError
from multiflow.models.xvlm.batch import read_batch
from multiflow.models.xvlm.config import XVLMVQAConfig
from multiflow.models.xvlm.losses import next_token_losses
from multiflow.models.xvlm.text import TextEncoder
from multiflow.models.xvlm.towers import XVLMTower
from multiflow.models.xvlm.vision import VisionEncoder

ROWS = 512  # answers that are scored at once: bounds the memory of the logits


@dataclass
class XVLMVQAOutput(ModelOutput):
    """``loss``; ``answer_losses`` (answers,), the LM of each answer."""

    loss: Tensor | None = None
    answer_losses: Tensor | None = None


class Ranking(NamedTuple):
    """The best answers of each question, best first: their places in the list, and their probabilities among the k."""

    indices: Int[Tensor, "questions k"]
    scores: Float[Tensor, "questions k"]


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
    ) -> XVLMVQAOutput:
        """Compute the loss of a batch of questions with their answers.

        Args:
            pixel_values: normalised images, one for each question.
            input_ids: questions.
            attention_mask: which of their tokens are real (1).
            answer_ids: the answers to the first question, then those to the second one, and so on.
            answer_mask: which of their tokens are real (1).
            answer_weights: how much each answer counts; 1 where not given.
            answers_per_question: how many answers each question has; 1 where not given.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch = read_batch(given, losses=False)
        mask, count = batch.attention_mask, len(batch.input_ids)
        if answer_ids is None or answer_mask is None:
            missing = "answer_ids" if answer_ids is None else "answer_mask"
            raise MultiflowError(
                f"the batch has no '{missing}'; X-VLM needs answer_ids and answer_mask for its answers"
            )
        owner = _owners(count, answer_ids, answer_mask, answer_weights, answers_per_question)
        states = self.encode_question(batch.pixel_values, batch.input_ids, mask)
        each = self._answer_losses(states, mask, answer_ids, answer_mask, owner)
        total = each if answer_weights is None else each * answer_weights
        return XVLMVQAOutput(loss=total.sum() / count, answer_losses=each)

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
        if k < 1:
            raise MultiflowError(f"k is {k}; it must be at least 1")
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        read_batch(given, losses=False)
        _owners(len(candidate_ids), candidate_ids, candidate_mask, None, None)
        states = self.encode_question(pixel_values, input_ids, attention_mask)
        begin = candidate_ids[:1, :1].expand(len(states), 1)
        logits = self._decode(states, attention_mask, begin, torch.ones_like(begin), None)[:, 0]
        first = logits.float().log_softmax(1)[:, candidate_ids[:, 1]]
        chosen = first.sort(dim=1, stable=True).indices[:, -k:].sort(dim=1).values
        at_once = max(1, ROWS // chosen.shape[1])
        losses = []
        for rows in torch.arange(len(states), device=states.device).split(at_once):
            some = chosen[rows].flatten()
            owner = torch.arange(len(rows), device=states.device).repeat_interleave(chosen.shape[1])
            candidates = candidate_ids[some], candidate_mask[some]
            each = self._answer_losses(states[rows], attention_mask[rows], *candidates, owner)
            losses.append(each.view(len(rows), -1))
        sums = first.gather(1, chosen) - torch.cat(losses)
        best = sums.softmax(1).sort(dim=1, descending=True, stable=True)
        return Ranking(chosen.gather(1, best.indices), best.values)

    def _answer_losses(self, states: Tensor, mask: Tensor, ids: Tensor, real: Tensor, owner: Tensor | None) -> Tensor:
        logits = self._decode(states, mask, ids, real, owner)
        return next_token_losses(logits, ids.masked_fill(real == 0, -100)).sum(1)

    def _decode(self, states: Tensor, mask: Tensor, ids: Tensor, real: Tensor, owner: Tensor | None) -> Tensor:
        """Return the logits of each next token of the answers; answer ``i`` belongs to question ``owner[i]``."""
        decoded = self.text_decoder.bert.decode(ids, real, states, mask, owner)
        return self.text_decoder.cls.predictions(decoded)


def _owners(
    questions: int, ids: Tensor, mask: Tensor, weights: Tensor | None, per_question: Tensor | None
) -> Tensor | None:
    """Check the answers against each other and the questions, and return the question of each one (None: its own)."""
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise MultiflowError(f"answer_ids has shape {tuple(ids.shape)}; expected (answers, tokens), at least 2 tokens")
    if mask.shape != ids.shape:
        raise MultiflowError(
            f"answer_mask has shape {tuple(mask.shape)} and answer_ids {tuple(ids.shape)}; pad both to the same length"
        )
    if weights is not None and weights.shape != ids.shape[:1]:
        raise MultiflowError(f"answer_weights has shape {tuple(weights.shape)}; give one weight for each of {len(ids)}")
    if per_question is None and len(ids) == questions:
        return None
    if per_question is None or per_question.shape != (questions,) or int(per_question.sum()) != len(ids):
        counts = None if per_question is None else per_question.tolist()
        raise MultiflowError(
            f"{len(ids)} answers were given to {questions} questions, and answers_per_question is {counts}; "
            "it must say for each question how many of the answers are its own"
        )
    return torch.arange(questions, device=ids.device).repeat_interleave(per_question)
