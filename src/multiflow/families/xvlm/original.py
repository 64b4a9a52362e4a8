"""The original release of X-VLM: its config files, and the few names that our model does not keep.

Our modules have the release's paths, so a layer's original name is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from multiflow.base.errors import MultiflowError, unknown
from multiflow.families.original import Original
from multiflow.families.xvlm.config import TEXT, VISION, XVLMConfig
from multiflow.families.xvlm.models import XVLMForPretraining

LAYERS = (
    r"^vision_encoder\.encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])$"
    r"|^text_encoder\.(bert\.)?encoder\.layer\.\d+\."
    r"((cross)?attention\.(self\.(query|key|value)|output\.dense)|intermediate\.dense|output\.dense)$"
)
ONE_TENSOR = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.bias": "text_encoder.cls.predictions.decoder.bias",
}
RELEASE_SIZES = {
    "width": ("vision_width", "hidden_size"),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "mlp": ("intermediate_size",),
    "act": ("hidden_act",),
    "dropout": ("hidden_dropout_prob",),
}


def xvlm_config(sizes: Mapping[str, Any]) -> XVLMConfig:
    """Read sizes in plain words, in the form of a saved ``config.json``, or in that of the release's config files.

    >>> xvlm_config({"image_res": 384, "patch_size": 16, "text_config": {"fusion_layer": 6}}).image_size
    384
    """
    if "model_type" in sizes:
        return XVLMConfig.from_dict(dict(sizes))
    if {"image_res", "vision_config", "text_config"} & set(sizes):
        return _release_config(sizes)
    known = [name for name in signature(XVLMConfig.__init__).parameters if name not in ("self", "kwargs")]
    for key in sizes:
        if key not in known:
            raise unknown("size", key, known)
    return XVLMConfig(**sizes)


def _release_config(release: Mapping[str, Any]) -> XVLMConfig:
    for key, supported in (("use_clip_vit", True), ("use_swin", False), ("use_roberta", False)):
        if release.get(key, supported) != supported:
            raise MultiflowError(
                f"the config says {key}: {release[key]}; only X-VLM with a CLIP ViT and BERT can be loaded, "
                f"that is {key}: {supported}"
            )
    vision, text = release.get("vision_config", {}), release.get("text_config", {})
    patch_size = release.get("patch_size", vision.get("patch_size", 16))
    if vision.get("patch_size", patch_size) != patch_size:
        raise MultiflowError(
            f"patch_size is {patch_size} but vision_config says {vision['patch_size']}; make them equal"
        )
    top = {"image_size": release.get("image_res"), "embed_dim": release.get("embed_dim"), "temp": release.get("temp")}
    return XVLMConfig(
        patch_size=patch_size,
        vision=_plain(vision, VISION),
        text={**_plain(text, TEXT), "encoder_width": None},  # the release, too, takes it from the vision tower
        **{key: value for key, value in top.items() if value is not None},
    )


def _plain(release: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: release[name] for ours in known for name in RELEASE_SIZES.get(ours, (ours,)) if name in release}


def _build(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> XVLMForPretraining:
    return XVLMForPretraining(xvlm_config(sizes))


XVLM = Original(
    layers=LAYERS,
    key=lambda name: ONE_TENSOR.get(name, name),
    build=_build,
    ignored=r"position_ids$",
    presets={"base": {}},
)
