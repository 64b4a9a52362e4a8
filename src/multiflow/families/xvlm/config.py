"""Sizes of an X-VLM model, in plain words."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from multiflow.families.family import check_rules, check_towers, complete

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
    "encoder_width": None,  # that of the vision tower
    "dropout": 0.1,
}
FRACTIONS = ("text.layer_norm_eps", "text.dropout")
MAY_BE_ZERO = ("vision.local_attn_depth", "text.fusion_layer")


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
        self.vision = complete("vision", vision or {}, VISION)
        self.text = complete("text", text or {}, TEXT)
        self.text["encoder_width"] = self.text["encoder_width"] or self.vision["width"]
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", True)
        _check(self)
        super().__init__(**kwargs)


class XVLMRetrievalConfig(XVLMConfig):
    """Sizes of an X-VLM for retrieval; see `XVLMConfig`."""

    model_type = "xvlm-retrieval"

    def __init__(self, **sizes: Any):  # without one, transformers writes one that checks nothing
        super().__init__(**sizes)


class XVLMCaptioningConfig(XVLMConfig):
    """Sizes of an X-VLM for captioning.

    Args:
        label_smoothing: share of the loss's target that all words but the right one have together.
        eos_token_id: the token that ends a caption, [SEP]; None = captions go on to their longest length.
        pad_token_id: the token that fills shorter captions up, [PAD].
        **sizes: those of `XVLMConfig`.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "xvlm-captioning"

    def __init__(
        self,
        label_smoothing: float = 0.1,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **sizes: Any,
    ):
        self.label_smoothing = label_smoothing
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **sizes)
        smoothing = {"label_smoothing": label_smoothing}
        check_rules(smoothing, [("label_smoothing", "at least 0 and less than 1", 0 <= label_smoothing < 1)])

    @property
    def vocab_size(self) -> int:
        """Number of tokens, under the name by which the beam search of older versions of transformers asks for it."""
        return self.text["vocab_size"]


class XVLMVQAConfig(XVLMConfig):
    """Sizes of an X-VLM for question answering; see `XVLMConfig`. The decoder has as many layers as fuse.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "xvlm-vqa"

    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        fuses = self.text["fusion_layer"] < self.text["layers"]
        check_rules(self.text, [("fusion_layer", "less than text.layers, as fusion layers decode the answer", fuses)])


def _check(config: XVLMConfig) -> None:
    vision, text = config.vision, config.text
    rules = [
        ("vision.local_attn_depth", "at most vision.layers", vision["local_attn_depth"] <= vision["layers"]),
        ("text.fusion_layer", "at most text.layers", text["fusion_layer"] <= text["layers"]),
    ]
    top = ("image_size", "patch_size", "embed_dim")
    check_towers(config, top, fractions=FRACTIONS, may_be_zero=MAY_BE_ZERO, rules=rules)
