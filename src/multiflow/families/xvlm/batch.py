"""The batches of X-VLM, checked: what is missing or does not fit is found before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError


@dataclass(frozen=True)
class Masked:
    """The texts with some tokens masked; unused slots have position 0 and label -100."""

    input_ids: Int[Tensor, "texts length"]
    positions: Int[Tensor, "texts slots"]
    labels: Int[Tensor, "texts slots"]


@dataclass(frozen=True)
class Regions:
    """Which image and which of its tokens ([CLS] first) each text sees, and its box: cx, cy, w, h in 0..1."""

    image_index: Int[Tensor, " texts"]
    patch_mask: Int[Tensor, "texts tokens"]
    boxes: Float[Tensor, "texts 4"] | None  # None where no loss is asked for
    is_image: Int[Tensor, " texts"] | None


@dataclass(frozen=True)
class Batch:
    """Pairs of image and text: text ``i`` belongs to image ``i``, or to the image that ``regions`` names."""

    pixel_values: Float[Tensor, "images 3 side side"]
    input_ids: Int[Tensor, "texts length"]
    attention_mask: Int[Tensor, "texts length"]
    masked: Masked | None
    regions: Regions | None


def read_batch(batch: Mapping[str, Any], losses: bool) -> Batch:
    """Check the keys of a batch and group them.

    Args:
        batch: the arguments of `XVLMForPretraining.forward`; what is not given is absent or None.
        losses: also ask for the keys that only the losses need.

    Raises:
        MultiflowError: a key is missing, or the shapes do not fit together.
    """
    pixel_values, input_ids, attention_mask = _take(batch, "pixel_values", "input_ids", "attention_mask")
    masked = regions = None
    if losses and _any(batch, "mlm_input_ids", "mlm_positions", "mlm_labels"):
        masked = Masked(*_take(batch, "mlm_input_ids", "mlm_positions", "mlm_labels"))
    if _any(batch, "image_index", "patch_mask"):
        needed = ("image_index", "patch_mask", "boxes") if losses else ("image_index", "patch_mask")
        index, mask, *boxes = _take(batch, *needed)
        regions = Regions(index, mask, boxes[0] if boxes else None, batch.get("is_image"))
    source, rows = ("image_index", regions.image_index) if regions else ("pixel_values", pixel_values)
    if len(rows) != len(input_ids):
        raise MultiflowError(
            f"{source} has {len(rows)} rows and input_ids has {len(input_ids)}; "
            "give one image for each text, or say with image_index which image each text belongs to"
        )
    same = {"attention_mask": attention_mask} | ({} if masked is None else {"mlm_input_ids": masked.input_ids})
    for name, tensor in same.items():
        if tensor.shape != input_ids.shape:
            shapes = f"{name} has shape {tuple(tensor.shape)} and input_ids {tuple(input_ids.shape)}"
            raise MultiflowError(f"{shapes}; pad both to the same length")
    return Batch(pixel_values, input_ids, attention_mask, masked, regions)


def _any(batch: Mapping[str, Any], *keys: str) -> bool:
    return any(batch.get(key) is not None for key in keys)


def _take(batch: Mapping[str, Any], *keys: str) -> tuple[Tensor, ...]:
    values = tuple(batch.get(key) for key in keys)
    for key, value in zip(keys, values, strict=True):
        if value is None:
            raise MultiflowError(f"the batch has no '{key}'; X-VLM needs {', '.join(keys)} together")
    return values  # type: ignore[return-value]
