"""The original release of BLIP: its config files, its names, and what a file of it may leave out.

The release stores what encoder and decoder share under both names; the original name is the text encoder's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError, unknown
from multiflow.families.blip.config import TEXT, BlipPretrainingConfig
from multiflow.families.blip.contrastive import fresh_queue
from multiflow.families.blip.models import BlipForPretraining
from multiflow.families.original import Original

LAYERS = (
    r"^vision_model\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.fc[12])$"
    r"|^text_(encoder|decoder\.bert)\.encoder\.layer\.\d+\."
    r"((cross)?attention\.(self\.(query|key|value)|output\.dense)|intermediate\.dense|output\.dense)$"
)
VISION_NAMES = {
    r"^vision_model(_m)?\.": r"visual_encoder\1.",
    r"\.embeddings\.class_embedding$": ".cls_token",
    r"\.embeddings\.position_embedding$": ".pos_embed",
    r"\.embeddings\.patch_embedding\.": ".patch_embed.proj.",
    r"\.encoder\.layers\.(\d+)\.": r".blocks.\1.",
    r"\.self_attn\.qkv\.": ".attn.qkv.",
    r"\.self_attn\.projection\.": ".attn.proj.",
    r"\.layer_norm([12])\.": r".norm\1.",
    r"\.post_layernorm\.": ".norm.",
}
SHARED_NAMES = {
    r"^text_decoder\.bert\.(?!encoder\.layer\.\d+\.attention\.)": "text_encoder.",
    r"^text_decoder\.cls\.predictions\.decoder\.weight$": "text_encoder.embeddings.word_embeddings.weight",
    r"^text_decoder\.cls\.predictions\.bias$": "text_decoder.cls.predictions.decoder.bias",
}
MOMENTUM = re.compile(r"^(visual_encoder|vision_proj|text_encoder|text_proj)_m\.")
RELEASE_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "act": "hidden_act",
    "dropout": "hidden_dropout_prob",
}
VITS: dict[str, dict[str, Any]] = {"base": {}, "large": {"width": 1024, "layers": 24, "heads": 16, "mlp": 4096}}


def vision_key(name: str) -> str:
    """Name of a parameter in the release where encoder and decoder share nothing.

    >>> vision_key("vision_model.encoder.layers.0.self_attn.projection.weight")
    'visual_encoder.blocks.0.attn.proj.weight'
    """
    return _replace(name, VISION_NAMES) if name.startswith("vision_model") else name


def blip_key(name: str) -> str:
    """Name of a parameter of the pretraining model in its release.

    >>> blip_key("text_decoder.bert.encoder.layer.0.crossattention.self.key.weight")
    'text_encoder.encoder.layer.0.crossattention.self.key.weight'
    """
    return _replace(vision_key(name), SHARED_NAMES)


def _replace(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _absent(name: str, like: Tensor, given: Mapping[str, Tensor]) -> Tensor | None:
    """Momentum copies start equal to the online weights, queues with random features."""
    online = MOMENTUM.sub(r"\1.", name)
    if online != name and online in given:
        return given[online].clone()
    if name in ("image_queue", "text_queue"):
        return fresh_queue(like.new_empty(like.shape, device="cpu"))
    return like.new_zeros(1, device="cpu") if name == "queue_ptr" else None


def blip_config(sizes: Mapping[str, Any]) -> BlipPretrainingConfig:
    """Read sizes in plain words, in the form of a saved ``config.json``, or in that of the release's config files.

    >>> blip_config({"image_size": 384, "vit": "large"}).vision["layers"]
    24
    """
    if "model_type" in sizes:
        return BlipPretrainingConfig.from_dict(dict(sizes))
    if "vit" in sizes:
        return _release_config(sizes)
    known = [name for name in signature(BlipPretrainingConfig.__init__).parameters if name not in ("self", "kwargs")]
    for key in sizes:
        if key not in known:
            raise unknown("size", key, known)
    return BlipPretrainingConfig(**sizes)


def _release_config(release: Mapping[str, Any]) -> BlipPretrainingConfig:
    """Read the release's YAML file, with the sizes of the text model under ``med_config`` or ``bert_config``."""
    if release["vit"] not in VITS:
        raise unknown("vit", str(release["vit"]), VITS)
    text = release.get("med_config", release.get("bert_config", {}))
    if not isinstance(text, Mapping):
        raise MultiflowError(f"med_config is {text!r}; it must be a mapping, or the path of a JSON file")
    names = {ours: RELEASE_SIZES.get(ours, ours) for ours in TEXT if ours != "encoder_width"}
    top = {name: release[name] for name in ("image_size", "queue_size", "alpha") if name in release}
    words = text.get("vocab_size", TEXT["vocab_size"])
    return BlipPretrainingConfig(
        vision=VITS[release["vit"]],
        text={ours: text[name] for ours, name in names.items() if name in text},
        bos_token_id=words - 2,  # the release adds [DEC] and [ENC] behind the other words
        enc_token_id=words - 1,
        **top,
    )


def _build(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> BlipForPretraining:
    """Build the model; where the sizes do not say how long the queues are, those in the file do."""
    if "image_queue" in state and not {"queue_size", "model_type"} & set(sizes):
        sizes = {**sizes, "queue_size": state["image_queue"].shape[-1]}
    model = BlipForPretraining(blip_config(sizes))
    positions = torch.arange(model.config.text["max_position_embeddings"], device="cpu")[None]
    for path in ("text_encoder.embeddings", "text_encoder_m.embeddings"):
        # no file holds these, so they must be real from the start
        model.get_submodule(path).register_buffer("position_ids", positions.clone(), persistent=False)
    return model


BLIP = Original(
    layers=LAYERS,
    key=blip_key,
    build=_build,
    absent=_absent,
    ignored=r"position_ids$",
    presets={name: {"vit": name} for name in VITS},
)
TRANSFORMERS_BLIP = Original(layers=LAYERS, key=vision_key)
