from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.data import load_tokenizer, open_data
from multiflow.families.batches import Counted, Source, calibration_batches, open_batches
from multiflow.families.opening import find_model, load_model
from multiflow.worlds.shapes import describe, make_scenes


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
    counted = Counted(Skips(pair, {**pair, "region": region}, images), "pairs", "memory")  # type: ignore[arg-type]
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


def test_tokens_fit_the_model(tiny: Path, world: Path) -> None:
    model: Any = load_model(tiny)
    batches = open_batches(model, str(tiny), Source(str(world / "pretrain" / "cc3m"), batches=2))
    for batch in batches:
        assert batch["input_ids"].max() < model.config.text["vocab_size"]
        assert batch["input_ids"].shape[1] <= model.config.text["max_position_embeddings"]


BLIPS = {
    "BlipForPretraining": 32,
    "BlipForConditionalGeneration": 24,
    "BlipForImageTextRetrieval": 24,
    "BlipForQuestionAnswering": 24,
}
"""Class -> image size of its tiny model."""
KEYS = {"pixel_values", "input_ids", "attention_mask"}


@pytest.mark.parametrize("name", BLIPS)
def test_texts_of_blip_have_at_most_30_tokens_and_end_with_sep(
    folder_of: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    folder, image = folder_of(name), np.zeros((20, 20, 3), np.uint8)
    captions = {"a.png": "a small red square", "b.png": " ".join(["a red square above a blue circle"] * 10)}
    for file in captions:
        Image.fromarray(image).save(tmp_path / file)
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (batch,) = open_batches(load_model(folder), str(folder), Source(str(tmp_path)))
    assert set(batch) == KEYS
    assert batch["pixel_values"].shape == (2, 3, BLIPS[name], BLIPS[name])
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [6, 30]
    tokenizer: Any = load_tokenizer(folder)
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        real = ids[mask.bool()]
        assert real[0] == tokenizer.cls_token_id
        assert (real == tokenizer.sep_token_id).nonzero().flatten().tolist() == [len(real) - 1]


def test_texts_of_blip_are_no_longer_than_its_positions(tiny_blip: Path, world: Path) -> None:
    model: Any = load_model(tiny_blip)
    model.config.text["max_position_embeddings"] = 5
    for batch in open_batches(model, str(tiny_blip), Source(str(world / "pretrain" / "cc3m"))):
        assert batch["input_ids"].shape[1] <= 5


@pytest.mark.parametrize("name", BLIPS)
def test_regions_are_whole_images_to_blip(folder_of: Callable[[str], Path], name: str, world: Path) -> None:
    folder = folder_of(name)
    batches = open_batches(load_model(folder), str(folder), Source(str(world / "pretrain"), batches=2, batch_size=3))
    regions: Any = open_data(world / "pretrain" / "vg")
    captions = {text for item in regions for region in item.regions for text in region.captions}
    tokenizer: Any = load_tokenizer(folder)
    for batch in batches:
        region = batch["region"]
        assert set(batch) == {*KEYS, "region"}
        assert set(region) == KEYS
        assert len(region["pixel_values"]) == len(region["input_ids"]) == 3
        texts = tokenizer.batch_decode(region["input_ids"], skip_special_tokens=True)
        assert set(texts) <= {
            tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in captions
        }
    assert batches.seen == 12


def test_models_without_batches_are_an_error() -> None:
    class Other(nn.Module):
        config = type("Config", (), {"model_type": "bert"})

    with pytest.raises(
        MultiflowError,
        match="models of type 'bert', only for .*xvlm",
    ):
        open_batches(Other(), "other", Source("data"))


def test_images_need_data() -> None:
    class Vit(nn.Module):
        config = type("Config", (), {"model_type": "vit"})

    with pytest.raises(MultiflowError, match=r"give some with data= \(--data DIR\)"):
        open_batches(Vit(), "vit", Source(None))


def test_blip_is_augmented_too(tiny_blip: Path, world: Path) -> None:
    model = load_model(tiny_blip)
    plain, augmented = (
        next(iter(open_batches(model, str(tiny_blip), Source(str(world / "pretrain"), batch_size=4, augment=augment))))
        for augment in (None, "paper")
    )
    for part in (lambda batch: batch, lambda batch: batch["region"]):
        assert torch.equal(part(plain)["input_ids"], part(augmented)["input_ids"])
        assert not torch.equal(part(plain)["pixel_values"], part(augmented)["pixel_values"])


def test_batches_of_a_model_are_those_of_the_command_line() -> None:
    place = find_model("xvlm-shapes")
    model = load_model(place)
    ours = list(calibration_batches(model, batches=2, batch_size=3))
    theirs = list(open_batches(model, place, Source(None, batches=2, batch_size=3)))
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_misspelt_options_and_models_of_no_family_are_refused() -> None:
    with pytest.raises(MultiflowError, match=r"unknown option 'batchsize'.*did you mean 'batch_size'\?"):
        calibration_batches(load_model("vit-digits"), batchsize=3)
    with pytest.raises(MultiflowError, match=r"no images .*; give .*data= \(--data DIR\)"):
        calibration_batches(load_model("vit-digits"))
    with pytest.raises(MultiflowError, match="no calibration batches .*'Linear'"):
        calibration_batches(nn.Linear(2, 2))


def test_what_is_skipped_is_told_once_and_kept(tiny: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "pairs.csv").write_text("foto,alt\na.png,one\nb.png,two\n")
    batches = calibration_batches(
        load_model(tiny), str(tmp_path), tokenizer=str(tiny), image_column="foto", text_column="alt"
    )
    with pytest.warns(UserWarning, match="1 of 2 items skipped: b.png") as warned:
        list(batches), list(batches)
    assert len(warned) == 1
    assert batches.skipped.skips == (("b.png", "not an image file"),)
