"""The small models that are pretrained on Shapes, with random weights: X-VLM and BLIP, and their tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from multiflow.data import build_word_tokenizer
from multiflow.families.blip import BlipForPretraining, BlipPretrainingConfig
from multiflow.families.reading import VisionLanguageModel
from multiflow.families.xvlm import XVLMConfig, XVLMForPretraining
from multiflow.worlds.shapes import VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from multiflow.worlds.shapes.pretrain import PretrainSettings

MAX_TOKENS = 40
INITIALIZER_RANGE = 0.05  # the usual 0.02 suits a width of 768: attention starts uniform and stays so for long
QUEUE, MOMENTUM = 1024, 0.98  # BLIP's 57,600 and 0.995 are for runs a hundred times as long


def shapes_tokenizer(family: str = "xvlm") -> PreTrainedTokenizerBase:
    """Return the tokenizer of the Shapes language: one token a word; for BLIP, [DEC] and [ENC] are the last two."""
    tokenizer = build_word_tokenizer([*VOCABULARY, ",", "?"])
    if family == "blip":
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_tokens("[ENC]", special_tokens=True)
    return tokenizer


def shapes_model(settings: PretrainSettings, vocab_size: int) -> VisionLanguageModel:
    """Build the model with random weights that depend on the seed alone.

    Args:
        settings: sizes; one that is None is the family's own.
        vocab_size: tokens of its tokenizer.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        return BUILDERS[settings.family](settings, vocab_size)


def _sizes(settings: PretrainSettings, vocab_size: int) -> dict[str, Any]:
    """Sizes that both families write alike."""
    tower = {"width": settings.width, "heads": settings.heads, "act": "gelu"}
    return {
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.embed_dim,
        "initializer_range": INITIALIZER_RANGE,
        "vision": tower | {"mlp": settings.size("vision_mlp"), "layers": settings.vision_layers},
        "text": tower
        | {"mlp": settings.size("text_mlp"), "layers": settings.size("text_layers"), "vocab_size": vocab_size}
        | {"max_position_embeddings": MAX_TOKENS, "dropout": 0.0},
    }


@torch.no_grad()
def _xvlm(settings: PretrainSettings, vocab_size: int) -> XVLMForPretraining:
    sizes = _sizes(settings, vocab_size)
    sizes["vision"]["local_attn_depth"] = settings.vision_layers // 2
    sizes["text"]["fusion_layer"] = sizes["text"]["layers"]
    sizes["text"]["layers"] += settings.fusion_layers
    model = XVLMForPretraining(XVLMConfig(**sizes))
    model.vision_encoder.pos_embed.weight[1:] = plane_waves(settings)
    return model


@torch.no_grad()
def _blip(settings: PretrainSettings, vocab_size: int) -> BlipForPretraining:
    tokens = {"bos_token_id": vocab_size - 2, "enc_token_id": vocab_size - 1}
    memory = {"queue_size": QUEUE, "momentum": MOMENTUM}
    model = BlipForPretraining(BlipPretrainingConfig(**(_sizes(settings, vocab_size) | tokens | memory)))
    model.vision_model.embeddings.position_embedding[0, 1:] = plane_waves(settings)
    return model


BUILDERS: dict[str, Callable[[PretrainSettings, int], VisionLanguageModel]] = {"xvlm": _xvlm, "blip": _blip}


def plane_waves(settings: PretrainSettings) -> Float[Tensor, "patches width"]:
    """Sines and cosines of column and row: what the learned positions of the patches start from.

    Wavelengths run from two patches to twice the side.
    """
    side = settings.image_size // settings.patch_size
    cells = torch.arange(side)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    frequencies = math.pi * torch.logspace(0, math.log10(1 / side), settings.width // 4)
    phases = (torch.stack([column.flatten(), row.flatten()], 1)[..., None] * frequencies).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], 1) / 2
