"""Answers to questions about images: what the models for them have in common, whatever their family.

loss  = sum over answers of weight x LM / number of questions
rank  = of a list of answers the ``k`` whose first token is likeliest, by a score of the whole answer, best first

LM is what a decoder loses on an answer, a sum over its tokens. Where first tokens are equally likely, the answers that
stand earlier in the list are left out, as everywhere in this library; of equal scores the earlier answer comes first.
In the published code both are a matter of chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import ModelOutput

from multiflow.base.errors import MultiflowError

ROWS = 512  # answers that are scored at once: bounds the memory of the logits


@dataclass
class VQAOutput(ModelOutput):
    """``loss``; ``answer_losses`` (answers,), the LM of each answer."""

    loss: Tensor | None = None
    answer_losses: Tensor | None = None


class Ranking(NamedTuple):
    """The best answers of each question, best first: their places in the list, and their scores."""

    indices: Int[Tensor, "questions k"]
    scores: Float[Tensor, "questions k"]


class Answers(NamedTuple):
    """Answers of a batch, or a list of candidates: tokens, which of them are real, the question of each (None: i)."""

    ids: Int[Tensor, "answers length"]
    mask: Int[Tensor, "answers length"]
    owner: Int[Tensor, " answers"] | None = None


def read_answers(
    name: str,
    longest: int,
    questions: int,
    answer_ids: Int[Tensor, "answers length"] | None,
    answer_mask: Int[Tensor, "answers length"] | None,
    answer_weights: Float[Tensor, " answers"] | None = None,
    answers_per_question: Int[Tensor, " questions"] | None = None,
) -> Answers:
    """Check answers against each other and the questions, and find the question of each one.

    Args:
        name: of the family, for errors.
        longest: tokens at most that the decoder takes.
        questions: how many there are.
        answer_ids: the answers to the first question, then those to the second one, and so on. Each begins with a token
            that says so and ends with [SEP].
        answer_mask: which of their tokens are real (1).
        answer_weights: how much each answer counts; 1 where not given.
        answers_per_question: how many answers each question has; 1 where not given.

    Raises:
        MultiflowError: the answers or their mask are missing, or a shape does not fit the others, the questions or the
            model.
    """
    if answer_ids is None or answer_mask is None:
        missing = "answer_ids" if answer_ids is None else "answer_mask"
        raise MultiflowError(f"the batch has no '{missing}'; {name} needs answer_ids and answer_mask for its answers")
    shape = tuple(answer_ids.shape)
    if answer_mask.shape != answer_ids.shape:
        raise MultiflowError(
            f"answer_mask has shape {tuple(answer_mask.shape)} and answer_ids {shape}; pad both to the same length"
        )
    if len(shape) != 2 or not 2 <= shape[1] <= longest:
        raise MultiflowError(
            f"answer_ids has shape {shape}; this model takes (answers, tokens), from 2 to {longest} tokens an answer"
        )
    if answer_weights is not None and answer_weights.shape != shape[:1]:
        given = tuple(answer_weights.shape)
        raise MultiflowError(f"answer_weights has shape {given}; give one weight for each of {shape[0]}")
    counts = answers_per_question
    if counts is None and shape[0] == questions:
        return Answers(answer_ids, answer_mask)
    if counts is None or counts.shape != (questions,) or int(counts.sum()) != shape[0]:
        said = None if counts is None else counts.tolist()
        raise MultiflowError(
            f"{shape[0]} answers were given to {questions} questions, and answers_per_question is {said}; "
            "it must say for each question how many of the answers are its own"
        )
    numbers = torch.arange(questions, device=answer_ids.device)
    owner = numbers.repeat_interleave(counts.to(answer_ids.device), output_size=shape[0])
    return Answers(answer_ids, answer_mask, owner)


def read_candidates(
    name: str,
    longest: int,
    candidate_ids: Int[Tensor, "candidates length"] | None,
    candidate_mask: Int[Tensor, "candidates length"] | None,
    k: int,
) -> Answers:
    """Check a list of answers to rank; arguments and errors as of `read_answers`, and ``k`` is at least 1."""
    if k < 1:
        raise MultiflowError(f"k is {k}; it must be at least 1")
    count = 0 if candidate_ids is None else len(candidate_ids)
    return read_answers(name, longest, count, candidate_ids, candidate_mask)


def weigh(losses: Float[Tensor, " answers"], weights: Float[Tensor, " answers"] | None, questions: int) -> VQAOutput:
    """Return the output of a batch: the loss is the weighted sum of the answers' LM over the number of questions."""
    total = losses if weights is None else losses * weights.to(losses)
    return VQAOutput(loss=total.sum() / questions, answer_losses=losses)


def rank(
    logits: Float[Tensor, "questions vocab"],
    candidates: Answers,
    k: int,
    losses: Callable[[Int[Tensor, " rows"], Answers], Float[Tensor, " answers"]],
    score: Callable[[Tensor, Tensor], Tensor],
) -> Ranking:
    """Rank a list of answers for each question, see the top of this file.

    Args:
        logits: of each question's first token.
        candidates: the list; an answer's first token is the one after its beginning.
        k: how many are scored whole; all if there are fewer.
        losses: ``losses(rows, answers)`` -> LM of answers to the questions of these numbers, equally many for each one;
            ``answers.owner`` counts within the rows.
        score: ``score(log p(first token), LM)`` -> what the answers are sorted by.
    """
    first = logits.float().log_softmax(1)[:, candidates.ids[:, 1]]
    chosen = first.sort(dim=1, stable=True).indices[:, -k:].sort(dim=1).values
    numbers, many = torch.arange(len(chosen), device=chosen.device), chosen.shape[1]
    found = []
    for rows in numbers.split(max(1, ROWS // many)):
        some = chosen[rows].flatten()
        owner = numbers[: len(rows)].repeat_interleave(many)
        found.append(losses(rows, Answers(candidates.ids[some], candidates.mask[some], owner)).view(-1, many))
    best = score(first.gather(1, chosen), torch.cat(found)).sort(dim=1, descending=True, stable=True)
    return Ranking(chosen.gather(1, best.indices), best.values)


class AnswersQuestions:
    """Abstract, to be mixed into a model: the loss of a batch of questions, and the ranking of a list of answers.

    A family says how questions are read (`_read`, `encode_question`), what its decoder loses on answers
    (`_answer_losses`), what it says first (`_first_logits`), and by what it sorts answers (`_score`).
    """

    title: str  # of the family, for errors
    config: Any

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
            answer_ids: the answers, see `read_answers`.
            answer_mask: which of their tokens are real (1).
            answer_weights: how much each answer counts; 1 where not given.
            answers_per_question: how many answers each question has; 1 where not given.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = self._read(pixel_values, input_ids, attention_mask)
        given = (answer_ids, answer_mask, answer_weights, answers_per_question)
        answers = read_answers(self.title, self.config.text["max_position_embeddings"], len(ids), *given)
        states = self.encode_question(images, ids, mask)
        return weigh(self._answer_losses(states, mask, answers), answer_weights, len(ids))

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
        images, ids, mask = self._read(pixel_values, input_ids, attention_mask)
        longest = self.config.text["max_position_embeddings"]
        answers = read_candidates(self.title, longest, candidate_ids, candidate_mask, k)
        states = self.encode_question(images, ids, mask)

        def losses(rows: Tensor, some: Answers) -> Tensor:
            return self._candidate_losses(states[rows], mask[rows], some)

        best = rank(self._first_logits(states, mask, answers), answers, k, losses, self._score)
        return Ranking(best.indices, self._scale(best.scores))

    def encode_question(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
    ) -> Float[Tensor, "questions length width"]:
        """Embed questions, each grounded in its image."""
        raise NotImplementedError

    def _read(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError

    def _answer_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Float[Tensor, " answers"]:
        """LM of each answer to the question, in these states, that it belongs to."""
        raise NotImplementedError

    def _candidate_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Float[Tensor, " answers"]:
        """The same for answers of which every question has equally many."""
        return self._answer_losses(states, mask, answers)

    def _first_logits(self, states: Tensor, mask: Tensor, answers: Answers) -> Float[Tensor, "questions vocab"]:
        """Logits of each answer's first token."""
        raise NotImplementedError

    def _score(self, first: Tensor, losses: Tensor) -> Tensor:
        raise NotImplementedError

    def _scale(self, scores: Float[Tensor, "questions k"]) -> Float[Tensor, "questions k"]:
        return scores
