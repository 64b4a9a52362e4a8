"""Masks of every pruner as version 0.1.0 made them before its packages were moved: ``masks.json``.

Where AVX-512 or a second thread rounds sums in another way than AVX2 and this decides about a weight, all are listed,
each as that version made it there. ``python -m tests.old_files.test_old_masks`` prints what is made now.
"""

from __future__ import annotations

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multiflow as mf

PATTERNS = {"none": None, "per-row": "per-row", "2:4": "2:4"}
SHORT = {
    "itersnip": {"steps": 3, "batches_per_step": 2},
    "chita": {"batches_per_step": 4},
    "chita++": {"steps": 3, "batches_per_step": 2},
    "tamt": {"steps": 3, "lr": 2.0},
    "lobs": {"rounds": 3, "iterations": 8},
    "multiflow-refit": {"iterations": 8},
}
ADAPTER = mf.Adapter(
    groups={"first": r"^[02]", "last": r"^4"},
    forward=lambda model, batch: model(batch),
    loss=lambda model, batch: 400 * (model(batch) - batch[:, :8]).square().mean(),
)
FILE = Path(__file__).with_name("masks.json")
FOUND: dict[str, list[str]] = json.loads(FILE.read_text()) if FILE.is_file() else {}


def model() -> nn.Sequential:
    """Weights and batches are formulas, not random numbers."""
    made = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 8))
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters(), start=1):
            at = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((at * 0.7 * number + number).sin().view(parameter.shape) / (1 + number % 5))
    return made.eval()


def batches() -> list[Tensor]:
    at = torch.arange(6 * 16, dtype=torch.float64)
    return [(at * 0.31 * (number + 1)).cos().view(6, 16).float() for number in range(6)]


def outcome(method: str, pattern: str) -> str:
    """A hash of the masks at every sparsity; or that it is refused."""
    hyper: dict[str, Any] = dict(SHORT.get(method, {}))
    if pattern == "2:4" and method == "itersnip":
        hyper["steps"] = 1
    sparsity = None if pattern == "2:4" else [0.5, 0.75]
    try:
        result = mf.prune(
            model(), method, sparsity, batches(), adapter=ADAPTER, pattern=PATTERNS[pattern], seed=11, **hyper
        )
    except mf.MultiflowError:
        return "refused"
    found = hashlib.sha256()
    for at, masks in result.masks.items():
        found.update(f"{at}\n".encode())
        for name, mask in masks.items():
            found.update(f"{name} {tuple(mask.shape)}\n".encode())
            found.update(np.packbits(mask.numpy().astype(bool).flatten()).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("case", FOUND)
def test_the_masks_are_those_of_before(case: str) -> None:
    method, pattern = case.split("/")
    assert outcome(method, pattern) in FOUND[case]


if __name__ == "__main__":
    print(json.dumps({f"{m}/{p}": outcome(m, p) for m, p in product(mf.list_pruners(), PATTERNS)}, indent=1))
