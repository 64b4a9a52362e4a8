"""X-VLM: a ViT, the lower half of BERT for text, the upper half with cross-attention for fusion.

The boundary between text and fusion is ``fusion_layer`` of the config. Projections, heads and embeddings stay dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.adapters.base import Adapter, parts, require
from multiflow.adapters.families import family

KEYS = ("pixel_values", "input_ids", "attention_mask")


@family("xvlm")
def xvlm(model: nn.Module) -> Adapter:
    """Build the adapter of an X-VLM."""
    text: Any = model.config.text  # type: ignore[union-attr]
    numbers = {"text": range(text["fusion_layer"]), "fusion": range(text["fusion_layer"], text["layers"])}
    groups = {
        group: rf"^text_encoder\.bert\.encoder\.layer\.({'|'.join(map(str, layers))})\."
        for group, layers in numbers.items()
        if layers
    }
    return Adapter(
        groups={"vision": r"^vision_encoder\.encoder\.", **groups},
        forward=_forward,
        loss=_loss,
        streams={r"crossattention\.self\.(key|value)$": "image", r"^text_encoder\.": "text"},
        token_masks=_token_masks,
        name="xvlm",
    )


def _token_masks(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    require(batch, *KEYS)
    return {"text": batch["attention_mask"].bool(), "image": None}


def _forward(model: Any, batch: Mapping[str, Any]) -> None:
    """Vision, text layers on the unmasked text, fusion layers with cross-attention: each once, no losses."""
    model.calibration_forward(**cast_pixels(model, batch))


def _loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """ITC + ITM + MLM; a general and a region batch count half each, box losses are left out."""
    losses = []
    for part in parts(batch):
        require(part, *KEYS, "mlm_input_ids", "mlm_positions", "mlm_labels")
        out = model(**cast_pixels(model, part))
        losses.append(out.loss_itc + out.loss_itm + out.loss_mlm)
    return torch.stack(losses).mean()


def cast_pixels(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Give the pixels the dtype of the model."""
    return {**batch, "pixel_values": batch["pixel_values"].to(model.dtype)}
