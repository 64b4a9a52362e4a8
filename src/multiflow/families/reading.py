"""What the tasks must know of each family of models with images and texts: one record a family, found by model type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.calibration.hooks import evaluating
from multiflow.families.blip import BlipForPretraining, BlipForRetrieval
from multiflow.families.blip.momentum import MEMORY
from multiflow.families.xvlm import XVLMForPretraining, XVLMForRetrieval

VisionLanguageModel: TypeAlias = XVLMForPretraining | XVLMForRetrieval | BlipForPretraining | BlipForRetrieval
Words: TypeAlias = tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]


@dataclass(frozen=True)
class Family:
    """How a family reads texts and scores pairs.

    Args:
        name: as it is written in a text.
        ends: whether its texts end with [SEP].
        keep: ``(input_ids, text_embeds)`` -> what is kept of texts for the matching head, (texts, length, ...).
        match: ``(model, kept, attention_mask, image_embeds, image_index)`` -> states (texts, width) of each text
            together with its image, for the matching head.
        adds_cosine: whether the logit of "match" ranks a pair together with its cosine, or alone.
        words: name of the figure that says how many words the model guesses.
        asks: the same in words.
        masked: whether the guessed words are hidden ones.
        guess: ``(model, batch)`` -> guessed tokens, right tokens and which of them count.
        memory: pattern of the tensors that training needs and a stored model does without.
    """

    name: str
    ends: bool
    keep: Callable[[Tensor, Tensor], Tensor]
    match: Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
    adds_cosine: bool
    words: str
    asks: str
    masked: bool
    guess: Callable[[Any, Mapping[str, Tensor]], Words]
    memory: str | None = None


def _fuse(
    model: XVLMForPretraining | XVLMForRetrieval, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor
) -> Tensor:
    return model.fuse(kept, mask, images, image_index=image_index)[:, 0]


def _ground(
    model: BlipForPretraining | BlipForRetrieval, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor
) -> Tensor:
    return model.ground(kept, mask, images[image_index])[:, 0]


def _masked_words(model: XVLMForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    text = model.encode_text(batch["mlm_input_ids"], batch["attention_mask"])
    fused = model.fuse(text, batch["attention_mask"], image)
    guesses = model.text_encoder.predict(fused, batch["mlm_positions"]).argmax(-1)
    return guesses, batch["mlm_labels"], batch["mlm_labels"] != -100


def _next_words(model: BlipForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    states = model.decode(batch["input_ids"], batch["attention_mask"], image)[:, :-1]
    guesses = model.text_decoder.cls(states).argmax(-1)
    return guesses, batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()


XVLM = Family(
    name="X-VLM",
    ends=False,
    keep=lambda ids, embeds: embeds,
    match=_fuse,
    adds_cosine=False,
    words="mlm",
    asks="Masked words guessed",
    masked=True,
    guess=_masked_words,
)

BLIP = Family(
    name="BLIP",
    ends=True,
    keep=lambda ids, embeds: ids,
    match=_ground,
    adds_cosine=True,
    words="lm",
    asks="Next words guessed",
    masked=False,
    guess=_next_words,
    memory=MEMORY,
)

FAMILIES: Mapping[str, Family] = {
    "xvlm": XVLM,
    "xvlm-retrieval": XVLM,  # guesses no words: its head for them is gone
    "blip-pretraining": BLIP,
    "blip-retrieval": BLIP,  # guesses no words: its decoder is gone
}
"""``config.model_type`` -> family."""


def family_of(model: VisionLanguageModel) -> Family:
    """Return the family of a model.

    Raises:
        MultiflowError: the tasks know nothing of such models.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise MultiflowError(
            f"the model is of type '{model_type}'; this task takes models of type {' or '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


@torch.no_grad()
def guessed_words(model: VisionLanguageModel, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the share of words that a model guesses and that of the most frequent one, in percent.

    X-VLM guesses the masked tokens, BLIP's decoder each next one.

    Args:
        model: of a family in `FAMILIES`; it is set to evaluation mode meanwhile.
        batch: pairs in the form of its pretraining.
    """
    batch = {name: value.to(model.device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with evaluating(model):
        guesses, words, real = family_of(model).guess(model, batch)
    words = words[real]
    right = (guesses[real] == words).float().mean().item()
    return 100 * right, 100 * words.bincount().max().item() / len(words)
