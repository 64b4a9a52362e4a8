"""The golden data: outputs of the published implementations at a tiny size, in the names that we use.

Loaded tensors are shared between tests: copy before changing one.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiflow.families.opening import load_model

FOLDER = Path(__file__).parent / "golden"
BATCH_NAMES = {
    "image": "pixel_values",
    "text_ids": "input_ids",
    "text_atts": "attention_mask",
    "text_ids_masked": "mlm_input_ids",
    "masked_pos": "mlm_positions",
    "masked_ids": "mlm_labels",
    "label": "labels",
}
REGION_NAMES = {
    "region_idx_to_group_img": "image_index",
    "region_image_atts": "patch_mask",
    "region_target_bbox": "boxes",
    "region_is_image": "is_image",
}


@cache
def tensors(family: str, name: str) -> dict[str, Tensor]:
    """One of ``weights``, ``batches``, ``expected``, ``tasks``, ``values`` of a family, as stored."""
    return load_file(FOLDER / family / f"{name}.safetensors")


def config(family: str) -> dict:
    return json.loads((FOLDER / family / "config.json").read_text())


def prunable(family: str) -> dict[str, tuple[int, int]]:
    """Original parameter name -> shape."""
    listed = json.loads((FOLDER / family / "prunable.json").read_text())["prunable"]
    return {name: tuple(shape) for name, shape in listed.items()}


def batches(family: str) -> list[dict[str, Tensor]]:
    """The six calibration batches, with the names that our models take."""
    grouped: list[dict[str, Tensor]] = [{} for _ in range(6)]
    for key, value in tensors(family, "batches").items():
        index, name = key.split(".")
        grouped[int(index)][BATCH_NAMES[name]] = value
    return grouped


def region_batch() -> dict[str, Tensor]:
    """X-VLM's batch 0 with both texts over image 0, whose outputs are ``region_*`` in ``expected``."""
    expected = tensors("xvlm", "expected")
    return batches("xvlm")[0] | {ours: expected[theirs] for theirs, ours in REGION_NAMES.items()}


@cache
def masks(family: str) -> dict[str, dict[float, dict[str, Tensor]]]:
    """Tag -> sparsity -> original parameter name -> mask, True = kept."""
    found: dict[str, dict[float, dict[str, Tensor]]] = {}
    with np.load(FOLDER / family / "masks.npz") as stored:
        for key in stored.files:
            tag, sparsity, name = key.split("/")
            found.setdefault(tag, {}).setdefault(int(sparsity) / 100, {})[name] = torch.from_numpy(stored[key])
    return found


def model(family: str) -> nn.Module:
    """A fresh model with the golden weights, in evaluation mode."""
    folder = FOLDER / family
    return load_model(folder / "weights.safetensors", family=family, config=folder / "config.json")


def vqa_accuracy() -> list[dict]:
    """400 cases of ``prediction``, ten ``answers`` and the official accuracy in percent."""
    return json.loads((FOLDER / "vqa_accuracy.json").read_text())["cases"]


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    """Check that a tensor is that of the published implementation, up to 1e-4 of its largest value."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
