from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import multiflow as mf
from multiflow.data import Batches, Inputs, build_word_tokenizer, load_tokenizer, open_data
from multiflow.data.shapes import describe, make_scenes
from multiflow.errors import MultiflowError
from multiflow.models import load_model
from multiflow.tasks.batches import Counted, Source, open_batches
from tests.cli.conftest import Run


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


def test_tokens_fit_the_model(tiny: Path, pairs: Path) -> None:
    model: Any = load_model(tiny)
    batches = open_batches(model, str(tiny), Source(str(pairs), batches=2))
    for batch in batches:
        assert batch["input_ids"].max() < model.config.text["vocab_size"]
        assert batch["input_ids"].shape[1] <= model.config.text["max_position_embeddings"]


@pytest.fixture(scope="module")
def folder_of(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny BLIPs, by the class of the model."""

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


def test_texts_of_blip_are_no_longer_than_its_positions(tiny_blip: Path, pairs: Path) -> None:
    model: Any = load_model(tiny_blip)
    model.config.text["max_position_embeddings"] = 5
    for batch in open_batches(model, str(tiny_blip), Source(str(pairs))):
        assert batch["input_ids"].shape[1] <= 5


@pytest.mark.parametrize("name", BLIPS)
def test_regions_are_whole_images_to_blip(folder_of: Callable[[str], Path], name: str, world: Path) -> None:
    folder = folder_of(name)
    batches = open_batches(load_model(folder), str(folder), Source(str(world / "pretrain"), batches=2, batch_size=4))
    regions: Any = open_data(world / "pretrain" / "vg")
    captions = {text for item in regions for region in item.regions for text in region.captions}
    tokenizer: Any = load_tokenizer(folder)
    for batch in batches:
        region = batch["region"]
        assert set(batch) == {*KEYS, "region"}
        assert set(region) == KEYS
        assert len(region["pixel_values"]) == len(region["input_ids"]) == 4
        texts = tokenizer.batch_decode(region["input_ids"], skip_special_tokens=True)
        assert set(texts) <= {
            tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in captions
        }
    assert batches.seen == 16


@pytest.mark.parametrize("name", BLIPS)
@pytest.mark.parametrize("part", ["pretrain", "pretrain/vg"])
def test_blip_is_pruned_on_pairs_and_regions(
    folder_of: Callable[[str], Path], name: str, part: str, world: Path, run: Run
) -> None:
    folder = folder_of(name)
    options = ["--data", world / part, "--batches", 2, "--batch-size", 4, "--sparsity", 0.5]
    ran = run("prune", folder, *options, "--out", "out")
    assert ran.code == 0, ran.err
    assert f"2 batches, {16 if part == 'pretrain' else 8} pairs" in ran.out
    model: Any = load_model(folder)
    source = Source(str(world / part), batches=2, batch_size=4)
    expected = mf.prune(model, "multiflow", 0.5, open_batches(model, str(folder), source))
    assert mf.Masks.load("out/mask-0.5.safetensors") == expected.masks[0.5]
    assert run("prune", folder, *options, "--method", "snip", "--out", "snip").code == 0


def test_a_bundled_blip_makes_its_own_scenes(run: Run, tiny_blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tasks.loading", "cli.prune"):
        monkeypatch.setattr(f"multiflow.{module}.bundled_models", lambda: {"blip-shapes": tiny_blip})
    ran = run("prune", "blip-shapes", "--batches", 2, "--batch-size", 3, "--out", "out")
    assert ran.code == 0, ran.err
    assert "2 batches, 6 pairs" in ran.out


def test_a_tokenizer_that_is_not_blips(run: Run, tiny_blip: Path, pairs: Path, tmp_path: Path) -> None:
    build_word_tokenizer([f"word{i}" for i in range(500)]).save_pretrained(tmp_path / "large")
    error = run("prune", tiny_blip, "--data", pairs, "--tokenizer", "large").error
    assert "the tokenizer has 505 tokens, the model embeds" in error


def test_models_without_batches_are_an_error() -> None:
    class Other(nn.Module):
        config = type("Config", (), {"model_type": "bert"})

    with pytest.raises(
        MultiflowError,
        match="no calibration batches for models of type 'bert', only for xvlm, blip-pretraining, blip, vit",
    ):
        open_batches(Other(), "other", Source("data"))


def test_images_need_data() -> None:
    class Vit(nn.Module):
        config = type("Config", (), {"model_type": "vit"})

    with pytest.raises(MultiflowError, match="give some with --data DIR"):
        open_batches(Vit(), "vit", Source(None))


def test_splits_augmentation_and_workers_reach_the_batches(run: Run, tiny: Path, world: Path) -> None:
    options = ["--data", world / "coco", "--split", "val", "--augment", "paper", "--batch-size", 3, "--sparsity", 0.5]
    assert run("prune", tiny, *options, "--out", "here").code == 0
    data = open_data(world / "coco", split="val")
    assert len(data) == 4
    model = load_model(tiny)

    def masks(augment: str | None) -> mf.Masks:
        inputs = Inputs(load_tokenizer(tiny), 32, 8, augment=augment)
        return mf.prune(model, "multiflow", 0.5, Batches(data, inputs, batch_size=3)).masks[0.5]

    assert mf.Masks.load("here/mask-0.5.safetensors") == masks("paper") != masks(None)
    assert run("prune", tiny, *options, "--workers", 2, "--out", "behind").code == 0
    assert mf.Masks.load("behind/mask-0.5.safetensors") == masks("paper")
    here, behind = (json.loads(Path(f"{name}/result.json").read_text()) for name in ("here", "behind"))
    assert here["run"] == behind["run"]
    assert here["data"] == behind["data"]
    assert here["data"]["samples"] == 4


def test_blip_is_augmented_too(tiny_blip: Path, world: Path) -> None:
    model = load_model(tiny_blip)
    plain, augmented = (
        next(iter(open_batches(model, str(tiny_blip), Source(str(world / "pretrain"), batch_size=4, augment=augment))))
        for augment in (None, "paper")
    )
    for part in (lambda batch: batch, lambda batch: batch["region"]):
        assert torch.equal(part(plain)["input_ids"], part(augmented)["input_ids"])
        assert not torch.equal(part(plain)["pixel_values"], part(augmented)["pixel_values"])


def test_a_split_that_is_not_there(run: Run, tiny: Path, world: Path, pairs: Path) -> None:
    error = run("prune", tiny, "--data", world / "coco", "--split", "vall").error
    assert "give split= (--split), one of" in error
    assert "did you mean 'val'?" in error
    assert "has no splits; leave it out" in run("prune", tiny, "--data", pairs, "--split", "val").error
