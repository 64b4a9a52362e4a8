"""Sizes of the BLIP models, in plain words: those of the pretraining model, and what a task adds."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from multiflow.families.family import check_rules, check_towers, complete

VISION = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "mlp": 3072,
    "act": "gelu",
    "qkv": "fused",
}
TEXT = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "mlp": 3072,
    "act": "gelu",
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "encoder_width": None,  # that of the vision tower
    "dropout": 0.1,
}
WORDS = ("act", "qkv")
FRACTIONS = ("momentum", "alpha", "text.layer_norm_eps", "text.dropout")
TOKENS = ("enc_token_id", "bos_token_id", "pad_token_id")


class BlipPretrainingConfig(PretrainedConfig):
    """Sizes of a BLIP pretraining model; whatever is not given has the size of BLIP base.

    Args:
        image_size: side of the square images, in pixels.
        patch_size: side of a patch, in pixels.
        embed_dim: width of the contrastive image and text features.
        queue_size: number of features of earlier batches that the contrastive loss compares with.
        momentum: share of itself that a momentum parameter keeps in each step.
        alpha: share of the momentum model's opinion in the contrastive targets, once it has been ramped up.
        temp: initial temperature of the contrastive loss.
        enc_token_id: [ENC], the first token of a text that is encoded with an image.
        bos_token_id: [DEC], the first token of a text that is decoded.
        pad_token_id: the token that pads texts.
        vision: ``width, layers, heads, mlp`` (hidden width of the MLP) and ``act``; ``qkv`` is always ``fused``.
        text: ``width, layers, heads, mlp, act, vocab_size, max_position_embeddings, layer_norm_eps, dropout``.
        initializer_range: standard deviation of the initial weights.

    Raises:
        MultiflowError: an unknown or inconsistent size.

    >>> BlipPretrainingConfig(image_size=64, vision={"layers": 4}).vision["width"]
    768
    """

    model_type = "blip-pretraining"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 256,
        queue_size: int = 57600,
        momentum: float = 0.995,
        alpha: float = 0.4,
        temp: float = 0.07,
        enc_token_id: int = 30523,
        bos_token_id: int = 30522,
        pad_token_id: int = 0,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ):
        self.image_size = image_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.queue_size = queue_size
        self.momentum = momentum
        self.alpha = alpha
        self.temp = temp
        self.enc_token_id = enc_token_id
        self.vision = complete("vision", vision or {}, VISION)
        self.text = complete("text", text or {}, TEXT)
        self.text["encoder_width"] = self.text["encoder_width"] or self.vision["width"]
        self.initializer_range = initializer_range
        kwargs |= {"bos_token_id": bos_token_id, "pad_token_id": pad_token_id}
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)
        _check(self)


def _check(config: BlipPretrainingConfig) -> None:
    vocabulary = config.text["vocab_size"]
    rules = [
        *((name, "at most 1", getattr(config, name) <= 1) for name in ("momentum", "alpha")),
        *((t, f"less than text.vocab_size, {vocabulary}", getattr(config, t) < vocabulary) for t in TOKENS),
    ]
    top = ("image_size", "patch_size", "embed_dim", "queue_size", "momentum", "alpha", *TOKENS)
    check_towers(config, top, fractions=FRACTIONS, may_be_zero=TOKENS, words=WORDS, rules=rules)
    qkv = config.vision["qkv"]
    check_rules(config.vision, [("qkv", "'fused', as in the release", qkv == "fused")])


class BlipRetrievalConfig(BlipPretrainingConfig):
    """Sizes of a BLIP retrieval model; see `BlipPretrainingConfig`."""

    model_type = "blip-retrieval"

    def __init__(self, **sizes: Any):  # without one, transformers makes one up that knows no defaults
        super().__init__(**sizes)


class BlipCaptioningConfig(BlipPretrainingConfig):
    """Sizes of a BLIP captioning model.

    Args:
        eos_token_id: the token that ends a caption, [SEP]; None = captions go on to their longest length.
        **sizes: those of `BlipPretrainingConfig`.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "blip-captioning"

    def __init__(self, eos_token_id: int | None = None, **sizes: Any):
        super().__init__(eos_token_id=eos_token_id, **sizes)


class BlipVQAConfig(BlipPretrainingConfig):
    """Sizes of a BLIP model for questions about images.

    Args:
        drop_path: share of the images that, in training, go round each branch of the vision tower's last layer; layers
            before it take less, the first none.
        **sizes: those of `BlipPretrainingConfig`.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "blip-vqa"

    def __init__(self, drop_path: float = 0.0, **sizes: Any):
        self.drop_path = drop_path
        super().__init__(**sizes)
        check_rules({"drop_path": drop_path}, [("drop_path", "at least 0 and less than 1", 0 <= drop_path < 1)])
