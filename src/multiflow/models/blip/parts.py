"""The parts that transformers has of BLIP: sized by our config, and shared as the release shares them."""

from __future__ import annotations

from torch import nn
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from multiflow.models.blip.config import BlipPretrainingConfig
from multiflow.models.blip.losses import LABEL_SMOOTHING

VISION_EPS = 1e-6


def vision_model(config: BlipPretrainingConfig) -> BlipVisionModel:
    """Build the vision tower."""
    sizes = config.vision
    return BlipVisionModel(
        BlipVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["mlp"],
            hidden_act=sizes["act"],
            layer_norm_eps=VISION_EPS,
            initializer_range=config.initializer_range,
        )
    )


def text_encoder(config: BlipPretrainingConfig) -> BlipTextModel:
    """Build the text encoder; it attends to an image when it is given one."""
    return BlipTextModel(_text_config(config), add_pooling_layer=False)


def text_decoder(config: BlipPretrainingConfig, encoder: BlipTextModel) -> BlipTextLMHeadModel:
    """Build the text decoder, which has all but its self-attention in common with the encoder.

    The modules themselves are shared, so nothing that replaces a parameter can part them.
    """
    decoder = BlipTextLMHeadModel(_text_config(config))
    decoder.bert.embeddings = encoder.embeddings
    for own, shared in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
        own.crossattention, own.intermediate, own.output = shared.crossattention, shared.intermediate, shared.output
    head = decoder.cls.predictions
    head.decoder.weight, head.decoder.bias = encoder.embeddings.word_embeddings.weight, head.bias
    return decoder


def shared_names(model: nn.Module) -> dict[str, str]:
    """Map every further name of a shared parameter to its first one, as transformers' ``_tied_weights_keys`` wants."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: source for name, source in names if name != source}


def _text_config(config: BlipPretrainingConfig) -> BlipTextConfig:
    sizes = config.text
    return BlipTextConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        encoder_hidden_size=sizes["encoder_width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["mlp"],
        hidden_act=sizes["act"],
        max_position_embeddings=sizes["max_position_embeddings"],
        layer_norm_eps=sizes["layer_norm_eps"],
        hidden_dropout_prob=sizes["dropout"],
        attention_probs_dropout_prob=sizes["dropout"],
        initializer_range=config.initializer_range,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        sep_token_id=None,  # only generation asks for it
        label_smoothing=LABEL_SMOOTHING,
    )
