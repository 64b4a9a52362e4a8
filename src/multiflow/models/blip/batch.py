"""The batches of BLIP, checked: what is missing or does not fit is found before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multiflow.errors import MultiflowError
from multiflow.models.blip.config import BlipPretrainingConfig


def read_pairs(
    config: BlipPretrainingConfig,
    pixel_values: Float[Tensor, "pairs 3 side side"] | None,
    input_ids: Int[Tensor, "pairs length"] | None,
    attention_mask: Int[Tensor, "pairs length"] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the three parts of a batch of pairs back.

    Raises:
        MultiflowError: a part is missing, or its shape does not fit the others or the model.
    """
    if pixel_values is None or input_ids is None or attention_mask is None:
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        missing = next(name for name, value in given.items() if value is None)
        raise MultiflowError(f"the batch has no '{missing}'; BLIP needs {', '.join(given)} together")
    side, most = config.image_size, config.text["max_position_embeddings"]
    if pixel_values.shape[1:] != (3, side, side):
        shape = tuple(pixel_values.shape)
        raise MultiflowError(f"pixel_values has shape {shape}; this model takes (images, 3, {side}, {side})")
    if len(pixel_values) != len(input_ids):
        rows = f"pixel_values has {len(pixel_values)} rows and input_ids has {len(input_ids)}"
        raise MultiflowError(f"{rows}; give one image for each text")
    if attention_mask.shape != input_ids.shape:
        shapes = f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}"
        raise MultiflowError(f"{shapes}; pad both to the same length")
    if input_ids.shape[1] > most:
        raise MultiflowError(f"input_ids has {input_ids.shape[1]} tokens a text; this model takes at most {most}")
    return pixel_values, input_ids, attention_mask


@dataclass(frozen=True)
class Answers:
    """Answers of a batch, or a list of candidates.

    Args:
        ids: tokens (answers, length).
        mask: which of them are real (1).
        weights: how much each answer counts.
        per_question: how many answers belong to each question.
    """

    ids: Int[Tensor, "answers length"]
    mask: Int[Tensor, "answers length"]
    weights: Float[Tensor, " answers"]
    per_question: Int[Tensor, " questions"]


def read_answers(
    config: BlipPretrainingConfig,
    questions: int,
    answer_ids: Int[Tensor, "answers length"] | None,
    answer_mask: Int[Tensor, "answers length"] | None,
    answer_weights: Float[Tensor, " answers"] | None = None,
    answers_per_question: Int[Tensor, " questions"] | None = None,
) -> Answers:
    """Give the answers to so many questions back: each with the weight 1, and one for each question, if not given.

    Raises:
        MultiflowError: a part is missing, or its shape does not fit the others, the questions or the model.
    """
    if answer_ids is None or answer_mask is None:
        missing = "answer_ids" if answer_ids is None else "answer_mask"
        raise MultiflowError(f"the batch has no '{missing}'; BLIP needs answer_ids and answer_mask for its answers")
    weights = torch.ones(len(answer_ids)) if answer_weights is None else answer_weights
    counts = torch.ones(questions, dtype=torch.long) if answers_per_question is None else answers_per_question
    most = config.text["max_position_embeddings"]
    shape = tuple(answer_ids.shape)
    if answer_mask.shape != answer_ids.shape:
        raise MultiflowError(
            f"answer_mask has shape {tuple(answer_mask.shape)} and answer_ids {shape}; pad both to the same length"
        )
    if len(shape) != 2 or not 2 <= shape[1] <= most:
        raise MultiflowError(
            f"answer_ids has shape {shape}; this model takes (answers, tokens), from 2 to {most} tokens an answer"
        )
    if weights.shape != shape[:1]:
        raise MultiflowError(f"answer_weights has shape {tuple(weights.shape)}; give one weight for each of {shape[0]}")
    if counts.shape != (questions,) or int(counts.sum()) != shape[0]:
        raise MultiflowError(
            f"{shape[0]} answers were given to {questions} questions, and answers_per_question is {counts.tolist()}; "
            "it must say for each question how many of the answers are its own"
        )
    return Answers(answer_ids, answer_mask, weights, counts)


def begin(input_ids: Int[Tensor, "texts length"], token: int) -> Int[Tensor, "texts length"]:
    """Put a token in the place of each text's first one."""
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)
