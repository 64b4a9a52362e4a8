"""`multiflow prune` on images alone, for models without a text tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.data.batches import ImageBatches
from multiflow.data.source import open_images
from tests.cli.conftest import Run
from tests.data.test_image_batches import SIZE, make_noise, write_classes


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """Folder of a tiny image classifier that knows the classes dog and cat, in this order."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=SIZE, patch_size=8,
        id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "animals")


def test_a_classifier_is_pruned_on_images(run: Run, vit: Path, classes: Path) -> None:
    ran = run("prune", vit, "--data", classes, "--sparsity", 0.5, "--batch-size", 2, "--out", "out")
    assert ran.code == 0
    assert "3 batches, 5 images" in ran.out
    assert f"5 images from {classes} (images of 2 classes)" in ran.out.replace("\n", " ")
    assert "pairs" not in ran.out
    data, _ = open_images(str(classes))
    model: Any = ViTForImageClassification.from_pretrained(vit)
    expected = mf.prune(model, "multiflow", 0.5, ImageBatches(data, SIZE, batch_size=2))
    assert mf.Masks.load("out/mask-0.5.safetensors") == expected.masks[0.5]
    assert run("apply", vit, "out/mask-0.5.safetensors", "--out", "pruned").code == 0


def test_pixel_statistics_come_from_the_folder_of_the_model(run: Run, vit: Path, classes: Path) -> None:
    (vit / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.1] * 3}))
    options = ["--data", classes, "--sparsity", 0.5, "--method", "wanda"]
    assert run("prune", vit, *options, "--out", "out").code == 0
    data, _ = open_images(str(classes))
    model: Any = ViTForImageClassification.from_pretrained(vit)
    batches = ImageBatches(data, SIZE, mean=(0.5,) * 3, std=(0.1,) * 3)
    expected = mf.prune(model, "wanda", 0.5, batches).masks[0.5]
    assert mf.Masks.load("out/mask-0.5.safetensors") == expected
    assert expected != mf.prune(model, "wanda", 0.5, ImageBatches(data, SIZE)).masks[0.5]
    assert run("apply", vit, "out/mask-0.5.safetensors", "--out", "pruned").code == 0
    assert Path("pruned/preprocessor_config.json").read_bytes() == (vit / "preprocessor_config.json").read_bytes()


@pytest.mark.parametrize(("data", "said"), [("nowhere", "no data at 'nowhere'"), ("empty", "no data found in 'empty'")])
def test_no_images(run: Run, vit: Path, tmp_path: Path, data: str, said: str) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    assert said in run("prune", vit, "--data", data).error
    assert not (tmp_path / "runs").exists()


def test_workers_make_the_same_batches(run: Run, vit: Path, classes: Path) -> None:
    (classes / "cat" / "10.png").write_bytes(b"no image")
    options = ["--data", classes, "--batch-size", 2, "--sparsity", 0.5]
    for workers in (0, 2):
        assert run("prune", vit, *options, "--workers", workers, "--out", workers).code == 0
    first, second = (mf.Masks.load(f"{workers}/mask-0.5.safetensors") for workers in (0, 2))
    assert first == second
    found = [json.loads(Path(f"{workers}/result.json").read_text())["data"] for workers in (0, 2)]
    assert found[0] == found[1]
    assert (found[0]["looked_at"], found[0]["samples"], found[0]["skipped"]) == (5, 4, 1)


def test_augmented_images(run: Run, vit: Path, classes: Path) -> None:
    make_noise(classes)
    assert run("prune", vit, "--data", classes, "--augment", "paper", "--sparsity", 0.5, "--out", "out").code == 0
    model: Any = ViTForImageClassification.from_pretrained(vit)
    batches = ImageBatches(open_images(str(classes))[0], SIZE, augment="paper")
    assert mf.Masks.load("out/mask-0.5.safetensors") == mf.prune(model, "multiflow", 0.5, batches).masks[0.5]


def test_splits_of_images(run: Run, vit: Path, classes: Path, world: Path) -> None:
    error = run("prune", vit, "--data", classes, "--split", "val").error
    assert "has no splits, so there is no split 'val'" in error
    error = run("prune", vit, "--data", classes / "cat", "--split", "val").error
    assert f"'{classes / 'cat'}'" in error
    assert "no split 'val'" in error
    assert "split 'vall' is unknown" in run("prune", vit, "--data", world / "coco", "--split", "vall").error
