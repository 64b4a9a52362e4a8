"""How a small X-VLM is pretrained: ITC + ITM + MLM on pairs, and the same with box losses on regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multiflow.families.pairs import Recipe, Words
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.models import XVLMForPretraining


def _build(sizes: dict[str, Any], settings: Any) -> XVLMForPretraining:
    sizes["vision"]["local_attn_depth"] = settings.vision_layers // 2
    sizes["text"]["fusion_layer"] = sizes["text"]["layers"]
    sizes["text"]["layers"] += settings.fusion_layers
    return XVLMForPretraining(XVLMConfig(**sizes))


def _describe(settings: Any) -> tuple[str, str]:
    every = settings.region_every
    regions = f"; every {every}th step region captions with boxes" if every else ""
    layers = f"{settings.size('text_layers')} text and {settings.fusion_layers} fusion layers"
    return layers, f"ITC, ITM and MLM{regions}"


def _masked_words(model: XVLMForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    text = model.encode_text(batch["mlm_input_ids"], batch["attention_mask"])
    fused = model.fuse(text, batch["attention_mask"], image)
    guesses = model.text_encoder.predict(fused, batch["mlm_positions"]).argmax(-1)
    return guesses, batch["mlm_labels"], batch["mlm_labels"] != -100


RECIPE = Recipe(
    sizes={"text_layers": 2, "vision_mlp": 768, "text_mlp": 576},
    build=_build,
    tower=lambda model: model.vision_encoder,
    positions=lambda model: model.vision_encoder.pos_embed.weight[1:],
    describe=_describe,
    words="mlm",
    asks="Masked words guessed",
    guess=_masked_words,
    masked=True,
    regions=True,
)
