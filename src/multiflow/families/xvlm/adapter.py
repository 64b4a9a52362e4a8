"""X-VLM: a ViT, the lower half of BERT for text, the upper half with cross-attention for fusion.

The boundary between text and fusion is ``fusion_layer`` of the config. Projections, heads and embeddings stay dense.
The decoder of answers starts from the fusion layers and belongs to their group.

Here is what pruning asks of it: its adapter, how it reads and scores pairs, the config files of the original release
and the few names of it that our model does not keep. Our modules have the release's paths, so a layer's original name
is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, Forward, Loss, TokenMasks, parts, require
from multiflow.base.errors import MultiflowError, unknown
from multiflow.data import Inputs
from multiflow.families.batches import Counted, Source, open_source, pair_batches
from multiflow.families.opening import fitting_tokenizer
from multiflow.families.original import Original
from multiflow.families.pairs import PairScoring
from multiflow.families.xvlm.config import TEXT, VISION, XVLMConfig
from multiflow.families.xvlm.models import XVLMForPretraining
from multiflow.families.xvlm.towers import XVLMPairs

KEYS = ("pixel_values", "input_ids", "attention_mask")
ANSWERS = ("answer_ids", "answer_mask")
MORE = {
    "xvlm-retrieval": ("image_ids",),
    "xvlm-captioning": ("labels",),
    "xvlm-vqa": (*ANSWERS, "answer_weights", "answers_per_question"),
}
"""What else a task model takes of a batch."""
SOURCE = r"crossattention\.self\.(key|value)$"  # these read what the text attends to
STREAMS = {SOURCE: "image", r"^text_encoder\.": "text"}
ANSWER_STREAMS = {rf"^text_decoder\..*{SOURCE}": "text", r"^text_decoder\.": "answer", **STREAMS}


def pretraining(model: nn.Module) -> Adapter:
    """Build the adapter of an X-VLM: its loss is ITC + ITM + MLM."""
    return _adapter(model, _pretraining_forward, _pretraining_loss)


def task(model: nn.Module) -> Adapter:
    """Build the adapter of an X-VLM that was made into a task model: its loss is that of the task."""
    if hasattr(model, "text_decoder"):
        return _adapter(model, _run, _task_loss, ANSWER_STREAMS, _answer_masks)
    return _adapter(model, _pairs_forward if hasattr(model, "itm_head") else _run, _task_loss)


def _token_masks(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    require(batch, *KEYS)
    return {"text": batch["attention_mask"].bool(), "image": None}


def _answer_masks(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    require(batch, *KEYS, *ANSWERS)
    return {**_token_masks(batch), "answer": batch["answer_mask"].bool()}


def _adapter(
    model: Any,
    forward: Forward,
    loss: Loss,
    streams: Mapping[str, str] = STREAMS,
    token_masks: TokenMasks = _token_masks,
) -> Adapter:
    text = model.config.text
    numbers = {"text": range(text["fusion_layer"]), "fusion": range(text["fusion_layer"], text["layers"])}
    groups = {
        group: rf"^text_encoder\.bert\.encoder\.layer\.({'|'.join(map(str, layers))})\."
        for group, layers in numbers.items()
        if layers
    }
    if not numbers["fusion"]:
        streams = {regex: stream for regex, stream in streams.items() if regex != SOURCE}
    if hasattr(model, "text_decoder"):
        groups["fusion"] += r"|^text_decoder\.bert\.encoder\."
    return Adapter(
        groups={"vision": r"^vision_encoder\.encoder\.", **groups},
        forward=forward,
        loss=loss,
        streams=streams,
        token_masks=token_masks,
        outputs=_compared if hasattr(model, "itm_head") else None,
        name=model.config.model_type,
    )


def _pretraining_forward(model: Any, batch: Mapping[str, Any]) -> None:
    """Vision, text layers on the unmasked text, fusion layers with cross-attention: each once, no losses."""
    model.calibration_forward(**cast_pixels(model, batch))


def _compared(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the pairs of a batch are found to be, general and region batch alike."""
    return model.compared(**cast_pixels(model, batch))


def _pretraining_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """ITC + ITM + MLM; a general and a region batch count half each, box losses are left out."""
    losses = []
    for part in parts(batch):
        require(part, *KEYS, "mlm_input_ids", "mlm_positions", "mlm_labels")
        out = model(**cast_pixels(model, part))
        losses.append(out.loss_itc + out.loss_itm + out.loss_mlm)
    return torch.stack(losses).mean()


def _pairs_forward(model: Any, batch: Mapping[str, Any]) -> None:
    """Run the layers of a retrieval model as those of pretraining, on whole images."""
    require(batch, *KEYS)
    _pretraining_forward(model, {name: batch[name] for name in KEYS})


def _run(model: Any, batch: Mapping[str, Any]) -> Any:
    require(batch, *KEYS, *(ANSWERS if hasattr(model, "text_decoder") else ()))
    taken = {name: batch[name] for name in (*KEYS, *MORE[model.config.model_type]) if name in batch}
    return model(**cast_pixels(model, taken))


def _task_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    return _run(model, batch).loss


def cast_pixels(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}


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


MOST_TOKENS = 40  # of a calibration text, as published


def calibration_pairs(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches of pairs, and of regions where the data have them."""
    config, text = model.config, model.config.text
    inputs = Inputs(
        fitting_tokenizer(source.tokenizer, place, text["vocab_size"]),
        config.image_size,
        config.patch_size,
        max_length=min(MOST_TOKENS, text["max_position_embeddings"]),
        augment=source.augment,
    )
    return pair_batches(open_source(source, config.image_size), inputs, source)


def _fuse(model: XVLMPairs, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor) -> Tensor:
    return model.fuse(kept, mask, images, image_index=image_index)[:, 0]


SCORING = PairScoring(
    keep=lambda ids, embeds: embeds,
    match=_fuse,
    adds_cosine=False,
)
