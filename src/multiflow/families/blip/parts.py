"""The parts that transformers has of BLIP: sized by our config, and shared as the release shares them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel, BlipTextModel

from multiflow.families.blip.batch import begin
from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.layers import DropPathLayer, QuestionAttention
from multiflow.families.blip.losses import LABEL_SMOOTHING

VISION_EPS = 1e-6


def vision_model(config: BlipPretrainingConfig, drop_path: float = 0.0) -> BlipVisionModel:
    """Build the vision tower; in training its last layer's branches are left out of a share ``drop_path`` of images."""
    sizes = config.vision
    own = BlipVisionConfig(
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
    model = BlipVisionModel(own)
    if drop_path:
        rates = torch.linspace(0, drop_path, sizes["layers"], device="cpu").tolist()
        model.encoder.layers = nn.ModuleList([DropPathLayer(own, rate) for rate in rates])
    return model


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
    return _share_words(decoder)


def caption_decoder(config: BlipPretrainingConfig) -> BlipTextLMHeadModel:
    """Build a text decoder of its own that attends to an image."""
    return _share_words(BlipTextLMHeadModel(_text_config(config)))


def answer_decoder(config: BlipPretrainingConfig) -> BlipTextLMHeadModel:
    """Build a text decoder of its own that attends to the real tokens of a question."""
    text = _text_config(config)
    text.encoder_hidden_size = text.hidden_size
    decoder = BlipTextLMHeadModel(text)
    for number, layer in enumerate(decoder.bert.encoder.layer):
        layer.crossattention = QuestionAttention(text, is_cross_attention=True, layer_idx=number)
    return _share_words(decoder)


def ground(
    encoder: BlipTextModel,
    config: BlipPretrainingConfig,
    input_ids: Int[Tensor, "texts length"],
    attention_mask: Int[Tensor, "texts length"],
    image_embeds: Float[Tensor, "texts tokens image_width"],
) -> Float[Tensor, "texts length width"]:
    """Embed texts, [ENC] as their first token, each grounded in its image."""
    return encoder(
        input_ids=begin(input_ids, config.enc_token_id),
        attention_mask=attention_mask,
        encoder_hidden_states=image_embeds,
    ).last_hidden_state


def decode(
    decoder: BlipTextLMHeadModel,
    config: BlipPretrainingConfig,
    input_ids: Int[Tensor, "texts length"],
    attention_mask: Int[Tensor, "texts length"],
    source: Float[Tensor, "sources tokens source_width"],
    source_mask: Float[Tensor, "sources 1 1 tokens"] | None = None,
) -> Float[Tensor, "texts length width"]:
    """Run a causal decoder over texts, [DEC] as their first token, that attend to a source; ``cls`` gives the logits.

    ``source_mask`` is added to the attention scores; only an `answer_decoder` heeds it.
    """
    return decoder.bert(
        input_ids=begin(input_ids, config.bos_token_id),
        attention_mask=attention_mask,
        encoder_hidden_states=source,
        encoder_attention_mask=source_mask,
        is_decoder=True,
        use_cache=False,
    ).last_hidden_state


def shared_names(model: nn.Module) -> dict[str, str]:
    """Map every further name of a shared parameter to its first one, as transformers' ``_tied_weights_keys`` wants."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False)]
    return {name: source for name, source in names if name != source}


def _share_words(decoder: BlipTextLMHeadModel) -> BlipTextLMHeadModel:
    """Let the language-model head predict with the word embeddings."""
    head = decoder.cls.predictions
    head.decoder.weight, head.decoder.bias = decoder.bert.embeddings.word_embeddings.weight, head.bias
    return decoder


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
