"""Sizes of an X-VLM model, in plain words."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from multiflow.errors import MultiflowError, did_you_mean

VISION = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "mlp": 3072,
    "act": "quick_gelu",
    "local_attn_depth": 4,
}
TEXT = {
    "width": 768,
    "layers": 12,
    "fusion_layer": 6,
    "heads": 12,
    "mlp": 3072,
    "act": "gelu",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "encoder_width": None,
    "dropout": 0.1,
}


class XVLMConfig(PretrainedConfig):
    """Sizes of an X-VLM model; whatever is not given has the size of X-VLM base.

    Args:
        image_size: side of the square images, in pixels.
        patch_size: side of a patch, in pixels.
        embed_dim: width of the contrastive image and text features.
        temp: initial temperature of the contrastive loss.
        vision: ``width, layers, heads, mlp`` (hidden width of the MLP), ``act``, and ``local_attn_depth``: how many of
            the last layers see, in a region batch, one copy of the image per text.
        text: ``width, layers, heads, mlp, act, vocab_size, max_position_embeddings, type_vocab_size, layer_norm_eps,
            dropout`` and ``fusion_layer``: the first layer that attends to the image (all later ones do).
        initializer_range: standard deviation of the initial weights.

    Raises:
        MultiflowError: an unknown or inconsistent size.

    >>> XVLMConfig(image_size=64, vision={"layers": 4}).vision["width"]
    768
    """

    model_type = "xvlm"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 256,
        temp: float = 0.07,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        self.image_size = image_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.temp = temp
        self.vision = _complete("vision", vision or {}, VISION)
        self.text = _complete("text", text or {}, TEXT)
        self.text["encoder_width"] = self.text["encoder_width"] or self.vision["width"]
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", True)
        _check(self)
        super().__init__(**kwargs)


def _complete(section: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in defaults:
            raise MultiflowError(
                f"unknown size '{section}.{key}'; known: {', '.join(defaults)}{did_you_mean(key, defaults)}"
            )
    return {**defaults, **given}


def _check(config: XVLMConfig) -> None:
    vision, text = config.vision, config.text
    rules = [
        (config.image_size % config.patch_size == 0, "image_size must be a multiple of patch_size"),
        (vision["width"] % vision["heads"] == 0, "vision.width must be a multiple of vision.heads"),
        (text["width"] % text["heads"] == 0, "text.width must be a multiple of text.heads"),
        (text["encoder_width"] == vision["width"], "text.encoder_width must equal vision.width"),
        (0 <= vision["local_attn_depth"] <= vision["layers"], "vision.local_attn_depth must be in 0..vision.layers"),
        (0 <= text["fusion_layer"] <= text["layers"], "text.fusion_layer must be in 0..text.layers"),
    ]
    for holds, rule in rules:
        if not holds:
            sizes = {"image_size": config.image_size, "patch_size": config.patch_size, "vision": vision, "text": text}
            raise MultiflowError(f"{rule}; got {sizes}")
