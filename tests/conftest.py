"""Tiny models with random weights and the tokenizer of Shapes, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from multiflow.tasks.pretrain import PretrainSettings
from multiflow.tasks.shapes_models import shapes_model, shapes_tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny X-VLM with random weights and the tokenizer of Shapes."""
    return save_tiny("xvlm", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BLIP for pretraining with random weights and the tokenizer of Shapes."""
    return save_tiny("blip", tmp_path_factory.mktemp("models") / "tiny-blip")


def save_tiny(family: Literal["xvlm", "blip"], folder: Path) -> Path:
    """Write a tiny model of a family with its tokenizer."""
    tokenizer = shapes_tokenizer(family)
    sizes = {"image_size": 32, "width": 16, "heads": 2, "vision_layers": 2, "text_layers": 1, "fusion_layers": 1}
    settings = PretrainSettings(family=family, **sizes, vision_mlp=32, text_mlp=32, embed_dim=8)
    shapes_model(settings, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
