from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.data import CLIP_MEAN, to_pixels
from multiflow.errors import MultiflowError
from multiflow.tasks.images import ImageBatches, label_classes, open_images
from tests.cli.conftest import Run
from tests.tasks.test_labelled import write_cifar10

SIZE = 16


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
    """Five grey images in a folder a class."""
    for name, greys in {"cat": (10, 20, 30), "dog": (40, 50)}.items():
        (tmp_path / "animals" / name).mkdir(parents=True)
        for grey in greys:
            image = Image.fromarray(np.full((20, 24, 3), grey, np.uint8))
            image.save(tmp_path / "animals" / name / f"{grey}.png")
    return tmp_path / "animals"


def test_a_folder_a_class_gives_labels(classes: Path) -> None:
    data, names = open_images(str(classes))
    assert len(data) == 5
    assert names == ("cat", "dog")
    labels = label_classes(names, {"dog": 0, "cat": 1})
    batches = ImageBatches(data, SIZE, batch_size=2, seed=3, classes=labels)
    assert len(batches) == 3
    made = list(batches)
    assert [len(batch["labels"]) for batch in made] == [2, 2, 1]
    pixels, found = torch.cat([b["pixel_values"] for b in made]), torch.cat([b["labels"] for b in made])
    assert pixels.shape == (5, 3, SIZE, SIZE)
    greys = ((pixels[:, 0, 0, 0] * 0.26862954 + CLIP_MEAN[0]) * 255).round().int().tolist()
    assert sorted(greys) == [10, 20, 30, 40, 50]
    assert [1 if grey < 35 else 0 for grey in greys] == found.tolist()
    assert greys != sorted(greys)


@pytest.mark.parametrize("split", [None, "test"])
def test_labelled_images_have_splits(tmp_path: Path, classes: Path, split: str | None) -> None:
    for name in ("train", "test"):
        shutil.copytree(classes, tmp_path / "zoo" / name)
    (tmp_path / "zoo/test/cat/10.png").unlink()
    data, names = open_images(str(tmp_path / "zoo"), split=split)
    assert (len(data), names) == (4 if split else 5, ("cat", "dog"))


def test_cifar_is_taken_as_it_was_released(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data, names = open_images(str(tmp_path))
    batches = ImageBatches(data, SIZE, batch_size=4, classes=label_classes(names, {}), workers=1)
    assert len(data) == 15
    assert next(iter(batches))["labels"].tolist() != []


def test_the_order_is_that_of_the_seed(classes: Path) -> None:
    data, _ = open_images(str(classes))
    first, again, other = (
        torch.cat([batch["pixel_values"] for batch in ImageBatches(data, SIZE, batch_size=2, seed=seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_plain_folder_has_no_labels(classes: Path) -> None:
    data, names = open_images(str(classes / "cat"))
    assert names == ()
    (batch,) = ImageBatches(data, SIZE)
    assert batch.keys() == {"pixel_values"}


def test_limit_mean_and_std(classes: Path) -> None:
    data, _ = open_images(str(classes / "dog"))
    batches = ImageBatches(data, SIZE, batch_size=1, limit=1, mean=(0.5,) * 3, std=(0.25,) * 3)
    (batch,) = batches
    assert len(batches) == 1
    image = np.full((20, 24, 3), 40, np.uint8)
    other = np.full((20, 24, 3), 50, np.uint8)
    expected = [to_pixels([x], SIZE, (0.5,) * 3, (0.25,) * 3) for x in (image, other)]
    assert any(np.array_equal(batch["pixel_values"].numpy(), pixels) for pixels in expected)


@pytest.mark.parametrize("part", ["cc3m", "vg", "."])
def test_pairs_and_regions_give_their_images(world: Path, part: str) -> None:
    data, names = open_images(str(world / "pretrain" / part))
    assert names == ()
    assert next(iter(ImageBatches(data, SIZE, batch_size=3)))["pixel_values"].shape == (3, 3, SIZE, SIZE)


def test_broken_images_are_skipped_and_reported(classes: Path) -> None:
    (classes / "cat" / "10.png").write_bytes(b"no image")
    whole = (classes / "dog" / "40.png").read_bytes()
    (classes / "dog" / "40.png").write_bytes(whole[: len(whole) // 2])
    data, names = open_images(str(classes))
    batches = ImageBatches(data, SIZE, batch_size=2, classes=label_classes(names, {}))
    made = list(batches)
    assert sum(len(batch["labels"]) for batch in made) == 3
    assert all(len(batch["labels"]) == len(batch["pixel_values"]) for batch in made)
    assert (batches.skipped.seen, batches.skipped.count) == (5, 2)
    assert {skip.key for skip in batches.skipped.skips} == {"cat/10.png", "dog/40.png"}
    list(batches)
    assert batches.skipped.count == 2  # not counted twice


def test_only_broken_images_are_an_error(classes: Path) -> None:
    for path in classes.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(MultiflowError, match="none of the 5 images from .* can be read: 5 of 5 items skipped"):
        list(ImageBatches(open_images(str(classes))[0], SIZE))


def test_labels_are_the_models_if_it_knows_all_classes() -> None:
    assert label_classes(("cat", "dog"), {"dog": 0, "cat": 1}) == {"cat": 1, "dog": 0}
    assert label_classes(("cat", "emu"), {"dog": 0, "cat": 1}) == {"cat": 0, "emu": 1}


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


def test_questions_have_images_too(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "vqa", tmp_path / "vqa")
    shutil.copytree(world / "images", tmp_path / "images")
    data, _ = open_images(str(tmp_path / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json"))
    assert data[0].image.size == (32, 32)


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


def test_augmented_images_are_a_function_of_the_seed(run: Run, vit: Path, classes: Path) -> None:
    rng = np.random.default_rng(0)
    for path in classes.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    data, names = open_images(str(classes))
    labels = label_classes(names, {})
    plain, first, again, other = (
        list(ImageBatches(data, SIZE, batch_size=2, classes=labels, seed=seed, augment=augment))
        for seed, augment in ((0, None), (0, "paper"), (0, "paper"), (1, "paper"))
    )
    for batch, same in zip(first, again, strict=True):
        assert torch.equal(batch["pixel_values"], same["pixel_values"])
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(plain, first, strict=True))
    assert not any(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(plain, first, strict=True))
    pixels = [torch.cat([batch["pixel_values"] for batch in batches]) for batches in (first, other)]
    assert not torch.equal(*pixels)
    assert run("prune", vit, "--data", classes, "--augment", "paper", "--sparsity", 0.5, "--out", "out").code == 0
    expected = mf.prune(
        ViTForImageClassification.from_pretrained(vit), "multiflow", 0.5, ImageBatches(data, SIZE, augment="paper")
    )
    assert mf.Masks.load("out/mask-0.5.safetensors") == expected.masks[0.5]


def test_a_folder_of_images_has_no_splits(run: Run, vit: Path, classes: Path, world: Path) -> None:
    error = run("prune", vit, "--data", classes, "--split", "val").error
    assert f"split 'val' was given, and '{classes}' has none" in error
    error = run("prune", vit, "--data", classes / "cat", "--split", "val").error
    assert f"split 'val' was given, but '{classes / 'cat'}' is a folder of images; leave it out" in error
    assert "split 'vall' is unknown" in run("prune", vit, "--data", world / "coco", "--split", "vall").error
    assert len(open_images(str(world / "coco"), split="val")[0]) == 4
