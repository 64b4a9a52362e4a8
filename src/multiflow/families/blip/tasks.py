"""BLIP's task models from a pretrained BLIP, or from one that was trained for the task at another resolution;
and how a small one is pretrained.

Retrieval takes the towers and their heads, captioning the vision tower and the decoder with what it shares with the
encoder. For questions, encoder and decoder are modules of their own that both start from what they share before, as in
the original release. All keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.contrastive import follow, online_path
from multiflow.families.blip.models import BlipForCaptioning, BlipForPretraining, BlipForRetrieval, BlipForVQA
from multiflow.families.blip.original import LAYERS
from multiflow.families.blip.parts import shared_names
from multiflow.families.family import Places
from multiflow.families.pairs import Recipe, Words
from multiflow.families.task_models import derive, places_of, resize_positions

POSITIONS = "vision_model.embeddings.position_embedding"
QUESTION = r"^text_decoder\..*crossattention\.self\.(key|value)"  # what reads the question in place of the image
QUEUES = ("image_queue", "text_queue", "image_ids_queue", "queue_ptr")
QUEUE, MOMENTUM = 1024, 0.98  # the release's 57,600 and 0.995 are for runs a hundred times as long
ALPHA_RAMP = 0.5  # share of the steps in which the soft targets come in

Task = TypeVar("Task", bound=PreTrainedModel)


def retrieval(
    model: Any,
    *,
    image_size: int | None = None,
    queue_size: int | None = None,
    momentum: float | None = None,
    alpha: float | None = None,
) -> tuple[BlipForRetrieval, Places]:
    """Build the model for retrieval; its momentum copies start equal to the online weights, its queues afresh.

    Args:
        model: a BLIP.
        image_size: side of the images, where it differs from that of the model.
        queue_size: number of features of earlier batches that the contrastive loss compares with, where it differs.
        momentum: share of itself that a momentum weight keeps in each step, where it differs.
        alpha: share of the momentum model's opinion in the contrastive targets, where it differs.
    """
    changes = {"image_size": image_size, "queue_size": queue_size, "momentum": momentum, "alpha": alpha}
    return _build(BlipForRetrieval, model, **changes)


def captioning(
    model: Any, *, image_size: int | None = None, eos_token_id: int | None = None, pad_token_id: int | None = None
) -> tuple[BlipForCaptioning, Places]:
    """Build the model for captioning.

    Args:
        model: a BLIP.
        image_size: side of the images, where it differs from that of the model.
        eos_token_id: the token that ends a caption, [SEP]; None = `generate` is told, or goes on to the longest length.
        pad_token_id: the token that fills shorter captions up, [PAD], where it differs from that of the model.
    """
    end = getattr(model.config, "eos_token_id", None) if eos_token_id is None else eos_token_id
    changes = {"image_size": image_size, "eos_token_id": end, "pad_token_id": pad_token_id}
    return _build(BlipForCaptioning, model, **changes)


def vqa(model: Any, *, image_size: int | None = None, drop_path: float = 0.1) -> tuple[BlipForVQA, Places]:
    """Build the model for question answering.

    Where image and text differ in width, the decoder's keys and values of the question are drawn anew.

    Args:
        model: a BLIP.
        image_size: side of the images, where it differs from that of the model.
        drop_path: stochastic depth of the vision tower in training; see `BlipVQAConfig`.
    """
    return _build(BlipForVQA, model, image_size=image_size, drop_path=drop_path)


def _build(task_class: type[Task], model: Any, **changes: Any) -> tuple[Task, Places]:
    names = [name for name in signature(BlipPretrainingConfig.__init__).parameters if name not in ("self", "kwargs")]
    sizes = {name: getattr(model.config, name) for name in names}
    make: Any = task_class.config_class
    config = make(**sizes | {name: value for name, value in changes.items() if value is not None})
    shared = shared_names(model)
    same_width = model.config.vision["width"] == model.config.text["width"]
    drawn = task_class is BlipForVQA and not isinstance(model, BlipForVQA) and not same_width

    def weight_of(name: str) -> str | None:
        return None if name in QUEUES or (drawn and re.search(QUESTION, name)) else online_path(name)

    def layer_of(path: str) -> str | None:
        name = f"{weight_of(path)}.weight"
        return shared.get(name, name).removesuffix(".weight")

    positions = model.get_parameter(POSITIONS)[0]
    resized = resize_positions(positions, config.image_size // config.patch_size)[None]
    task = derive(task_class, config, model, weight_of, {POSITIONS: resized})
    return task, places_of(task, model, LAYERS, layer_of)


def _untrained(sizes: dict[str, Any], settings: Any) -> BlipForPretraining:
    words = sizes["text"]["vocab_size"]
    tokens = {"bos_token_id": words - 2, "enc_token_id": words - 1}
    memory = {"queue_size": QUEUE, "momentum": MOMENTUM}
    return BlipForPretraining(BlipPretrainingConfig(**(sizes | tokens | memory)))


def _add_tokens(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens("[ENC]", special_tokens=True)


def _describe(settings: Any) -> tuple[str, str]:
    layers = (
        f"{settings.size('text_layers')} layers of the text encoder that the decoder shares but for its self-attention"
    )
    return layers, f"ITC (momentum {MOMENTUM:g}, queue of {QUEUE:,}), ITM and LM"


def _next_words(model: BlipForPretraining, batch: Mapping[str, Tensor]) -> Words:
    image = model.encode_image(batch["pixel_values"])
    states = model.decode(batch["input_ids"], batch["attention_mask"], image)[:, :-1]
    guesses = model.text_decoder.cls(states).argmax(-1)
    return guesses, batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()


RECIPE = Recipe(
    sizes={"text_layers": 3, "vision_mlp": 576, "text_mlp": 384},
    build=_untrained,
    tower=lambda model: model.vision_model,
    positions=lambda model: model.vision_model.embeddings.position_embedding[0, 1:],
    describe=_describe,
    words="lm",
    asks="Next words guessed",
    guess=_next_words,
    add_tokens=_add_tokens,
    begin=lambda model: follow(model, 0.0),
    options=lambda model, done: {"alpha": min(1.0, done / ALPHA_RAMP) * model.config.alpha},
)
