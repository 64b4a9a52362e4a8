"""What `multiflow prune` calibrates on reaches the batches: pairs and regions, splits, augmentation, workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from multiflow.data import Batches, Inputs, build_word_tokenizer, load_tokenizer, open_data
from multiflow.families.batches import Source, open_batches
from multiflow.families.opening import load_model
from tests.cli.conftest import Run
from tests.families.test_batches import BLIPS


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
    for module in ("families.opening", "cli.prune"):
        monkeypatch.setattr(f"multiflow.{module}.bundled_models", lambda: {"blip-shapes": tiny_blip})
    ran = run("prune", "blip-shapes", "--batches", 2, "--batch-size", 3, "--out", "out")
    assert ran.code == 0, ran.err
    assert "2 batches, 6 pairs" in ran.out


def test_a_tokenizer_that_is_not_blips(run: Run, tiny_blip: Path, pairs: Path, tmp_path: Path) -> None:
    build_word_tokenizer([f"word{i}" for i in range(500)]).save_pretrained(tmp_path / "large")
    error = run("prune", tiny_blip, "--data", pairs, "--tokenizer", "large").error
    assert "the tokenizer has 505 tokens, the model embeds" in error


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


def test_a_split_that_is_not_there(run: Run, tiny: Path, world: Path, pairs: Path) -> None:
    error = run("prune", tiny, "--data", world / "coco", "--split", "vall").error
    assert "give --split NAME, one of" in error
    assert "did you mean 'val'?" in error
    assert "has no splits, so there is no split 'val'" in run("prune", tiny, "--data", pairs, "--split", "val").error
