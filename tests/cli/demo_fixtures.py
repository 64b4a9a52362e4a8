"""A tiny X-VLM on Shapes in a folder, and a demo of it that takes a second."""

from __future__ import annotations

from pathlib import Path

import torch

from multiflow.cli.demo import DemoSettings
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tiny import SMALL


def save_tiny_model(folder: Path) -> Path:
    tokenizer = shapes_tokenizer()
    model = shapes_model(SMALL, len(tokenizer))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial values, so that images and texts matter
            if parameter.ndim:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_settings(model: Path, out: Path, **changes: object) -> DemoSettings:
    options: dict[str, object] = {"out": str(out), "model": str(model), "sparsity": (0.5, 0.9), "scenes": 12}
    options |= {"shortlist": 4, "batches": 2, "batch_size": 3, "examples": 2}
    return DemoSettings(**{**options, **changes})  # type: ignore[arg-type]
