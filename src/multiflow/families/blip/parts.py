"""The parts that transformers has of BLIP, sized by our config and shared as the release shares them.

Two layers are mended for question answering; their parameters keep their names. Batches are checked here: what is
missing or does not fit is found before anything is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipEncoderLayer, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextAttention, BlipTextLMHeadModel, BlipTextModel

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.losses import LABEL_SMOOTHING

VISION_EPS = 1e-6


def read_pairs(
    config: BlipPretrainingConfig,
    pixel_values: Float[Tensor, "pairs 3 side side"] | None,
    input_ids: Int[Tensor, "pairs length"] | None,
    attention_mask: Int[Tensor, "pairs length"] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the three parts of a batch of pairs back.

    Raises:
        MultiflowError: a part is missing, or its shape does not fit the others or the model.
    """
    if pixel_values is None or input_ids is None or attention_mask is None:
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        missing = next(name for name, value in given.items() if value is None)
        raise MultiflowError(f"the batch has no '{missing}'; BLIP needs {', '.join(given)} together")
    side, most = config.image_size, config.text["max_position_embeddings"]
    if pixel_values.shape[1:] != (3, side, side):
        shape = tuple(pixel_values.shape)
        raise MultiflowError(f"pixel_values has shape {shape}; this model takes (images, 3, {side}, {side})")
    if len(pixel_values) != len(input_ids):
        rows = f"pixel_values has {len(pixel_values)} rows and input_ids has {len(input_ids)}"
        raise MultiflowError(f"{rows}; give one image for each text")
    if attention_mask.shape != input_ids.shape:
        shapes = f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}"
        raise MultiflowError(f"{shapes}; pad both to the same length")
    if input_ids.shape[1] > most:
        raise MultiflowError(f"input_ids has {input_ids.shape[1]} tokens a text; this model takes at most {most}")
    return pixel_values, input_ids, attention_mask


def begin(input_ids: Int[Tensor, "texts length"], token: int) -> Int[Tensor, "texts length"]:
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)


class QuestionAttention(BlipTextAttention):
    """Cross-attention of answers to the real tokens of their questions.

    transformers 5.17 to 5.23 drop the mask of a cross-attention on the way; this one heeds it. Several answers to one
    question may follow each other: they are computed as one long answer, the question's keys and values once.
    """

    def forward(  # type: ignore[override]
        self,
        hidden_states: Float[Tensor, "answers length width"],
        attention_mask: Float[Tensor, "questions 1 1 tokens"] | None,
        encoder_hidden_states: Float[Tensor, "questions tokens width"],
        past_key_values: None,
    ) -> tuple[Float[Tensor, "answers length width"], Tensor]:
        """Let each answer attend to its question, whose mask is added to the scores."""
        per_question = hidden_states.reshape(len(encoder_hidden_states), -1, hidden_states.shape[-1])
        context, shares = self.self(
            per_question,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        return self.output(context.view_as(hidden_states), hidden_states), shares


class DropPathLayer(BlipEncoderLayer):
    """A layer of the vision tower with stochastic depth (Huang et al., arXiv 1603.09382).

    In training each of its two branches is left out of a share ``rate`` of the images, and counts ``1 / (1 - rate)``
    in the others.
    """

    def __init__(self, config: BlipVisionConfig, rate: float):
        super().__init__(config)  # type: ignore[arg-type]
        self.rate = rate

    def forward(
        self, hidden_states: Float[Tensor, "images tokens width"], **kwargs: Any
    ) -> Float[Tensor, "images tokens width"]:
        """Add both branches to the states."""
        attended, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self._thin(attended)
        return hidden_states + self._thin(self.mlp(self.layer_norm2(hidden_states)))

    def _thin(self, branch: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


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
