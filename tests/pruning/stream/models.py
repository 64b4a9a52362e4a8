"""Small models in folders, opened whole and to be streamed, and what the tests of streaming share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import multiflow as mf
from tests.families.automatic import tiny

KINDS = {
    "llava": "LlavaForConditionalGeneration",
    "clip": "CLIPModel",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "florence2": "Florence2ForConditionalGeneration",
    "blip-2": "Blip2ForImageTextRetrieval",
    "aya_vision": "AyaVisionForConditionalGeneration",
}
SPARSITIES = [0.5, 0.75]
FEW: dict[str, dict[str, int]] = {"lobs": {"rounds": 2, "iterations": 2}, "alps": {"steps": 6, "iterations": 2}}


def opened(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, list[Any]]:
    """Return a model in memory, the same one to be streamed, and batches."""
    model = tiny.build(kind, KINDS[kind]).to(dtype)
    model.save_pretrained(folder / "model", max_shard_size="50KB")
    batches = [tiny.batch(model), tiny.batch(model, padded=False), tiny.batch(model)]
    if dtype != torch.float32:
        batches = [{n: v.to(dtype) if v.is_floating_point() else v for n, v in batch.items()} for batch in batches]
    streamed = mf.open_streamed(folder / "model", folder / "offload")
    return type(model).from_pretrained(folder / "model").eval(), streamed, batches


def check_same(found: mf.Result, wanted: mf.Result) -> None:
    """Masks, hashes of the weights, statistics and changed weights are the same, bit for bit."""
    assert list(found.masks) == list(wanted.masks)
    for sparsity, masks in wanted.masks.items():
        assert found.masks[sparsity] == masks
        assert found.masks[sparsity].weights == masks.weights
        for name, weight in (wanted.weights or {}).get(sparsity, {}).items():
            assert torch.equal(found.weights[sparsity][name], weight)
    if found.stats is not None:
        for name, total in wanted.stats.sums["input_norm"].items():
            assert torch.equal(found.stats.sums["input_norm"][name], total)
