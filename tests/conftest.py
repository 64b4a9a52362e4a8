"""Tiny models with random weights and the tokenizer of Shapes, on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import transformers

from multiflow.data import load_tokenizer
from multiflow.methods import PRUNERS
from multiflow.worlds.shapes import write
from multiflow.worlds.shapes.models import PretrainSettings, shapes_model, shapes_tokenizer
from tests.tiny import SMALL


@pytest.fixture(autouse=True)
def _forget_pruners_of_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the registry as it was, and forget modules that the test wrote.

    The one place that reaches into the registry: nobody but a test has a reason to take a pruner out of it.
    """
    assert len(PRUNERS)  # all of ours are there
    monkeypatch.setattr(PRUNERS, "_records", dict(PRUNERS._records))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if "pytest-of" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny X-VLM with random weights and the tokenizer of Shapes."""
    return save_tiny("xvlm", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BLIP for pretraining with random weights and the tokenizer of Shapes."""
    return save_tiny("blip", tmp_path_factory.mktemp("models") / "tiny-blip")


@pytest.fixture(scope="session")
def folder_of(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny BLIPs, ours and those of transformers, by the class of the model."""

    @cache
    def folder_of(name: str) -> Path:
        if name == "BlipForPretraining":
            return tiny_blip
        tokenizer = load_tokenizer(tiny_blip)
        layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "max_position_embeddings": 40}
        vision = {"image_size": 24, "patch_size": 8}
        config = transformers.BlipConfig(text_config=layers | text, vision_config=layers | vision)
        folder = tmp_path_factory.mktemp(name)
        getattr(transformers, name)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in ``coco``, questions in ``vqa``: 6 train, 5 val and 4 test images."""
    return write(tmp_path_factory.mktemp("data") / "world", train=12, val=5, test=4, size=SMALL.image_size)


def save_tiny(family: Literal["xvlm", "blip"], folder: Path) -> Path:
    """Write a tiny model of a family with its tokenizer."""
    tokenizer = shapes_tokenizer(family)
    sizes = {"image_size": 32, "width": 16, "heads": 2, "vision_layers": 2, "text_layers": 1, "fusion_layers": 1}
    settings = PretrainSettings(family=family, **sizes, vision_mlp=32, text_mlp=32, embed_dim=8)
    shapes_model(settings, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
