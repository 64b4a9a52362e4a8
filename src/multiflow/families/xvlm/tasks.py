"""X-VLM's task models from a pretrained X-VLM, or from one that was trained for the task at another resolution."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from transformers import PreTrainedModel

from multiflow.families.family import Places
from multiflow.families.task_models import Source, derive, places_of, resize_positions
from multiflow.families.xvlm.models import XVLMForCaptioning, XVLMForRetrieval, XVLMForVQA
from multiflow.families.xvlm.original import LAYERS

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
