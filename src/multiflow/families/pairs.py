"""Pairs of image and text: what models that compare them have in common, however they do it.

Two towers are compared by the cosine of their features (ITC), a pair is judged by a matching head (ITM), which is
trained with hard negatives drawn by similarity; and the text is guessed from the image, word by word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from multiflow.base.errors import MultiflowError
from multiflow.calibration import evaluating
from multiflow.families.family import FAMILIES, family_of, find_family, model_types, type_of

Words: TypeAlias = tuple[Int[Tensor, "texts tokens"], Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]


class PairModel(PreTrainedModel):
    """Abstract: a model with a tower for images and one for texts, heads to compare them and one to match them."""

    base_model_prefix = ""
    main_input_name = "pixel_values"

    vision_proj: nn.Linear
    text_proj: nn.Linear
    temp: nn.Parameter
    itm_head: nn.Module

    def encode_image(self, pixel_values: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images tokens width"]:
        """Embed [CLS] and the patches of whole images."""
        raise NotImplementedError

    def encode_text(
        self, input_ids: Int[Tensor, "texts length"], attention_mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        """Embed texts by themselves."""
        raise NotImplementedError

    def image_features(self, image_embeds: Float[Tensor, "images tokens image_width"]) -> Float[Tensor, "images dim"]:
        """Project [CLS] to unit vectors that are compared with those of texts."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_features(self, text_embeds: Float[Tensor, "texts length width"]) -> Float[Tensor, "texts dim"]:
        """Project [CLS] to unit vectors that are compared with those of images."""
        return F.normalize(self.text_proj(text_embeds[:, 0]), dim=-1)


@dataclass(frozen=True)
class PairScoring:
    """How a family scores pairs of an image and a text."""

    # ``(input_ids, text_embeds)`` -> what is kept of texts for the matching head, (texts, length, ...)
    keep: Callable[[Tensor, Tensor], Tensor]
    # ``(model, kept, attention_mask, image_embeds, image_index)`` -> states (texts, width) of each text together with
    # its image, for the matching head
    match: Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
    adds_cosine: bool  # whether the logit of "match" ranks a pair together with its cosine, or alone


@dataclass(frozen=True)
class Recipe:
    """How a small model of a family is pretrained from random weights, and what it is asked about words afterwards."""

    sizes: Mapping[str, int]  # of the bundled model, where the settings leave them open
    # ``(sizes, settings)`` -> the model; ``sizes`` are those that all families write alike
    build: Callable[[dict[str, Any], Any], PairModel]
    tower: Callable[[Any], nn.Module]  # model -> its vision tower
    # model -> its position embeddings of the patches (patches, width), which are written to
    positions: Callable[[Any], Tensor]
    # settings -> what layers it has besides the vision layers, and its losses, for the model card
    describe: Callable[[Any], tuple[str, str]]
    words: str  # name of the figure that says how many words the model guesses
    asks: str  # the same in words
    # ``(model, batch)`` -> guessed tokens, right tokens and which of them count
    guess: Callable[[Any, Mapping[str, Tensor]], Words]
    masked: bool = False  # whether words of its texts are hidden
    regions: bool = False  # whether the model learns from regions too
    # tokenizer -> nothing; adds the tokens that the family needs behind the others
    add_tokens: Callable[[Any], object] = lambda tokenizer: None
    begin: Callable[[Any], object] = lambda model: None  # model -> nothing; before the first step on pairs
    # ``(model, done)`` -> further arguments of its forward, when a share ``done`` of the steps is done
    options: Callable[[Any, float], dict[str, Any]] = lambda model, done: {}


def scoring_of(model: Any) -> PairScoring:
    """Return how the family of a model scores pairs.

    Raises:
        MultiflowError: such models do not compare images with texts.
    """
    found = find_family(model)
    if found is None or "retrieval" not in found[1].evaluates:
        able = [name for name, _, known in model_types() if "retrieval" in known.evaluates]
        raise MultiflowError(
            f"the model is of type '{type_of(model)}'; this task takes models of type {' or '.join(able)}"
        )
    return found[0].get(found[0].scoring)


def recipe_of(family: str | PairModel) -> Recipe:
    """Return the recipe of a family, given by its name or by a model of it.

    Raises:
        MultiflowError: there is no such family, or none of its models can be pretrained here.
    """
    known = FAMILIES[family] if isinstance(family, str) else family_of(family)
    if known is None or known.recipe is None:
        given = f"family '{family}'" if isinstance(family, str) else f"type '{type_of(family)}'"
        able = ", ".join(name for name, other in FAMILIES.items() if other.recipe)
        raise MultiflowError(f"a model of {given} cannot be pretrained here; choose a family of {able}")
    return known.get(known.recipe)


@torch.no_grad()
def guessed_words(
    model: PairModel, batch: Mapping[str, Tensor], guess: Callable[[Any, Mapping[str, Tensor]], Words]
) -> tuple[float, float]:
    """Return the share of words that a model guesses and that of the most frequent one, in percent.

    Args:
        model: a pretraining model that compares pairs; it is set to evaluation mode meanwhile.
        batch: pairs in the form of its pretraining.
        guess: of its family's `Recipe`.
    """
    batch = {name: value.to(model.device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    with evaluating(model):
        guesses, words, real = guess(model, batch)
    words = words[real]
    right = (guesses[real] == words).float().mean().item()
    return 100 * right, 100 * words.bincount().max().item() / len(words)


@torch.no_grad()
def draw_negatives(
    image_sim: Float[Tensor, "pairs pairs"],
    text_sim: Float[Tensor, "pairs pairs"],
    seed: int,
    floor: float,
    positives: Bool[Tensor, "pairs pairs"] | None = None,
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """For every text a wrong image, and for every image a wrong text: the more similar the likelier.

    Args:
        image_sim: similarity of each image (row) with each text.
        text_sim: similarity of each text (row) with each image.
        seed: equal seeds give equal draws.
        floor: added to every probability, so that each wrong pair can be drawn.
        positives: which texts and images belong together and are never drawn, a symmetric matrix; by default its
            diagonal. What is drawn for a row of nothing but positives means nothing.
    """
    noise = torch.rand((2, *image_sim.shape), generator=torch.Generator().manual_seed(seed)).to(image_sim.device)
    weights = torch.stack([text_sim.softmax(1), image_sim.softmax(1)]) + floor
    if positives is None:
        weights.diagonal(dim1=1, dim2=2).zero_()
    else:
        weights.masked_fill_(positives, 0)
    images, texts = (weights / -noise.log()).argmax(2)  # the first to arrive among exponential clocks of these rates
    return images, texts


def matching_loss(logits: Float[Tensor, "rows 2"], pairs: int) -> Float[Tensor, ""]:
    """ITM: the first ``pairs`` rows match, the others do not."""
    target = (torch.arange(len(logits), device=logits.device) < pairs).long()
    return F.cross_entropy(logits.float(), target)
