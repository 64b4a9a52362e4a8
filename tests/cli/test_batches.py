from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from multiflow.cli.batches import Counted, Source, open_batches
from multiflow.data.shapes import describe, make_scenes
from multiflow.errors import MultiflowError
from multiflow.models import load_model


class Skips:
    """Batches with a report."""

    data = "memory"
    skipped = None

    def __init__(self, *batches: dict[str, Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_samples_are_counted_pass_by_pass() -> None:
    pair = {"pixel_values": torch.zeros(3, 1), "input_ids": torch.zeros(3, 1)}
    region = {"pixel_values": torch.zeros(2, 1), "input_ids": torch.zeros(5, 1)}
    images = {"pixel_values": torch.zeros(4, 1)}
    counted = Counted(Skips(pair, {**pair, "region": region}, images), "pairs")  # type: ignore[arg-type]
    for _ in range(2):
        assert len(list(counted)) == len(counted) == 3
        assert counted.seen == 3 + 3 + 5 + 4


def test_scenes_of_shapes_are_made_where_no_data_are_given(tiny: Path) -> None:
    model = load_model(tiny)
    batches = open_batches(model, str(tiny), Source(None, batches=2, batch_size=3, seed=4))
    first, second = list(batches), list(batches)
    assert [batch["pixel_values"].shape for batch in first] == [(3, 3, 32, 32)] * 2
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    captions = {describe(scene, 1)[0] for scene in make_scenes("train", 6, seed=4)}
    data: Any = batches.batches.data
    assert {pair.captions[0] for pair in data} == captions
    assert batches.summary()["samples"] == 6


def test_tokens_fit_the_model(tiny: Path, pairs: Path) -> None:
    model: Any = load_model(tiny)
    batches = open_batches(model, str(tiny), Source(str(pairs), batches=2))
    for batch in batches:
        assert batch["input_ids"].max() < model.config.text["vocab_size"]
        assert batch["input_ids"].shape[1] <= model.config.text["max_position_embeddings"]


def test_models_without_batches_are_an_error() -> None:
    class Other(nn.Module):
        config = type("Config", (), {"model_type": "bert"})

    with pytest.raises(MultiflowError, match="no calibration batches for models of type 'bert', only for xvlm, vit"):
        open_batches(Other(), "other", Source("data"))


def test_images_need_data() -> None:
    class Vit(nn.Module):
        config = type("Config", (), {"model_type": "vit"})

    with pytest.raises(MultiflowError, match="give some with --data DIR"):
        open_batches(Vit(), "vit", Source(None))
