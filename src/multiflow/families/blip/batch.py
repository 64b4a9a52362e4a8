"""The batches of BLIP, checked: what is missing or does not fit is found before anything is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.config import BlipPretrainingConfig


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
    """Put a token in the place of each text's first one."""
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)
