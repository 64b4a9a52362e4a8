"""How a small BLIP is pretrained: ITC + ITM + LM; in ITC the opinion of the momentum copies comes in slowly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.contrastive import follow
from multiflow.families.blip.models import BlipForPretraining
from multiflow.families.pairs import Recipe, Words

QUEUE, MOMENTUM = 1024, 0.98  # the release's 57,600 and 0.995 are for runs a hundred times as long
ALPHA_RAMP = 0.5  # share of the steps in which the soft targets come in


def _build(sizes: dict[str, Any], settings: Any) -> BlipForPretraining:
    words = sizes["text"]["vocab_size"]
    tokens = {"bos_token_id": words - 2, "enc_token_id": words - 1}
    memory = {"queue_size": QUEUE, "momentum": MOMENTUM}
    return BlipForPretraining(BlipPretrainingConfig(**(sizes | tokens | memory)))


def _add_tokens(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens("[ENC]", special_tokens=True)


def _describe(settings: Any) -> tuple[str, str]:
    layers = (
        f"{settings.size('text_layers')} layers of the text encoder that the decoder shares but for its self-attention"
    )
    return layers, f"ITC (momentum {MOMENTUM:g}, queue of {QUEUE:,}), ITM and LM"


def _next_words(model: BlipForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    states = model.decode(batch["input_ids"], batch["attention_mask"], image)[:, :-1]
    guesses = model.text_decoder.cls(states).argmax(-1)
    return guesses, batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()


RECIPE = Recipe(
    sizes={"text_layers": 3, "vision_mlp": 576, "text_mlp": 384},
    build=_build,
    tower=lambda model: model.vision_model,
    positions=lambda model: model.vision_model.embeddings.position_embedding[0, 1:],
    describe=_describe,
    words="lm",
    asks="Next words guessed",
    guess=_next_words,
    add_tokens=_add_tokens,
    begin=lambda model: follow(model, 0.0),
    options=lambda model, done: {"alpha": min(1.0, done / ALPHA_RAMP) * model.config.alpha},
)
