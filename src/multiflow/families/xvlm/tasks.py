"""X-VLM's task models from a pretrained X-VLM, or from one that was trained for the task at another resolution;
and how a small X-VLM is pretrained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from multiflow.families.family import Places
from multiflow.families.pairs import Recipe, Words
from multiflow.families.task_models import Source, derive, places_of, resize_positions
from multiflow.families.xvlm.adapter import LAYERS
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.models import XVLMForCaptioning, XVLMForPretraining, XVLMForRetrieval, XVLMForVQA

SIZES = ("image_size", "patch_size", "embed_dim", "temp", "vision", "text", "initializer_range")
POSITIONS = "vision_encoder.pos_embed.weight"
DECODER = r"^text_decoder\."
ALL_LAYERS = rf"{LAYERS}|{DECODER}bert\.encoder\."

Task = TypeVar("Task", bound=PreTrainedModel)


def retrieval(model: Any, *, image_size: int | None = None) -> tuple[XVLMForRetrieval, Places]:
    """Build the model for retrieval.

    Args:
        model: an X-VLM.
        image_size: side of the images, where it differs from that of the model.
    """
    return _build(XVLMForRetrieval, model, image_size, lambda name: name)


def captioning(
    model: Any,
    *,
    image_size: int | None = None,
    label_smoothing: float | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> tuple[XVLMForCaptioning, Places]:
    """Build the model for captioning.

    Args:
        model: an X-VLM.
        image_size: side of the images, where it differs from that of the model.
        label_smoothing: share of the loss's target that all words but the right one have together; by default 0.1.
        eos_token_id: the token that ends a caption, [SEP]; None = `generate` is told, or goes on to the longest length.
        pad_token_id: the token that fills shorter captions up, [PAD].
    """
    given = {"label_smoothing": label_smoothing, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    before = {name: getattr(model.config, name, None) for name in given}
    options = {name: before[name] if value is None else value for name, value in given.items()}
    options = {name: value for name, value in options.items() if value is not None}
    return _build(XVLMForCaptioning, model, image_size, lambda name: name, **options)


def vqa(model: Any, *, image_size: int | None = None, mask_decoder: bool = True) -> tuple[XVLMForVQA, Places]:
    """Build the model for question answering, whose decoder starts from the fusion layers.

    Where image and text differ in width, the decoder's keys and values of the question are drawn anew.

    Args:
        model: an X-VLM.
        image_size: side of the images, where it differs from that of the model.
        mask_decoder: whether the masks of the fusion layers follow them into the decoder.
    """
    text = model.config.text
    same_width = text["width"] == text["encoder_width"]

    def source(name: str) -> str | None:
        if hasattr(model, "text_decoder"):
            return name
        if re.search(DECODER, name) and not same_width and re.search(r"crossattention\.self\.(key|value)", name):
            return None
        fusion = rf"{DECODER}bert\.encoder\.layer\.(\d+)"
        name = re.sub(fusion, lambda m: f"text_encoder.bert.encoder.layer.{int(m[1]) + text['fusion_layer']}", name)
        return re.sub(DECODER, "text_encoder.", name)

    task, places = _build(XVLMForVQA, model, image_size, source)
    if not mask_decoder:
        places = {
            layer: tuple(path for path in paths if not re.search(DECODER, path)) for layer, paths in places.items()
        }
    return task, places


def _build(
    task_class: type[Task], model: Any, image_size: int | None, source: Source, **options: Any
) -> tuple[Task, Places]:
    sizes = {name: getattr(model.config, name) for name in SIZES}
    if image_size is not None:
        sizes["image_size"] = image_size
    make_config: Any = task_class.config_class
    config = make_config(**sizes, **options)
    resized = resize_positions(model.get_parameter(POSITIONS), config.image_size // config.patch_size)
    task = derive(task_class, config, model, source, {POSITIONS: resized})
    return task, places_of(task, model, ALL_LAYERS, source)


def _untrained(sizes: dict[str, Any], settings: Any) -> XVLMForPretraining:
    sizes["vision"]["local_attn_depth"] = settings.vision_layers // 2
    sizes["text"]["fusion_layer"] = sizes["text"]["layers"]
    sizes["text"]["layers"] += settings.fusion_layers
    return XVLMForPretraining(XVLMConfig(**sizes))


def _describe(settings: Any) -> tuple[str, str]:
    every = settings.region_every
    regions = f"; every {every}th step region captions with boxes" if every else ""
    layers = f"{settings.size('text_layers')} text and {settings.fusion_layers} fusion layers"
    return layers, f"ITC, ITM and MLM{regions}"


def _masked_words(model: XVLMForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    text = model.encode_text(batch["mlm_input_ids"], batch["attention_mask"])
    fused = model.fuse(text, batch["attention_mask"], image)
    guesses = model.text_encoder.predict(fused, batch["mlm_positions"]).argmax(-1)
    return guesses, batch["mlm_labels"], batch["mlm_labels"] != -100


RECIPE = Recipe(
    sizes={"text_layers": 2, "vision_mlp": 768, "text_mlp": 576},
    build=_untrained,
    tower=lambda model: model.vision_encoder,
    positions=lambda model: model.vision_encoder.pos_embed.weight[1:],
    describe=_describe,
    words="mlm",
    asks="Masked words guessed",
    guess=_masked_words,
    masked=True,
    regions=True,
)
