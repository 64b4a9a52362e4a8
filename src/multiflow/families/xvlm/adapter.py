"""X-VLM: a ViT, the lower half of BERT for text, the upper half with cross-attention for fusion.

The boundary between text and fusion is ``fusion_layer`` of the config. Projections, heads and embeddings stay dense.
The decoder of answers starts from the fusion layers and belongs to their group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, Forward, Loss, TokenMasks, parts, require

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
