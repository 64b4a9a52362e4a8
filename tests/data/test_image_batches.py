from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data import CLIP_MEAN, to_pixels
from multiflow.data.batches import ImageBatches
from multiflow.data.images import NoSuchSplit
from multiflow.data.source import label_classes, open_images
from tests.data.layouts.test_labelled import write_cifar10
from tests.tiny import SMALL

SIZE = 16


def write_classes(folder: Path) -> Path:
    """Write five grey images in a folder a class."""
    for name, greys in {"cat": (10, 20, 30), "dog": (40, 50)}.items():
        (folder / name).mkdir(parents=True)
        for grey in greys:
            Image.fromarray(np.full((20, 24, 3), grey, np.uint8)).save(folder / name / f"{grey}.png")
    return folder


def make_noise(folder: Path) -> None:
    """Put noise in the place of every image of a folder."""
    rng = np.random.default_rng(0)
    for path in folder.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "animals")


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
    with pytest.warns(UserWarning, match="2 of 5 items skipped"):
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
    with pytest.raises(MultiflowError, match="nothing of 5 images from .* can be read: 5 of 5 items skipped"):
        list(ImageBatches(open_images(str(classes))[0], SIZE))


def test_labels_are_the_models_if_it_knows_all_classes() -> None:
    assert label_classes(("cat", "dog"), {"dog": 0, "cat": 1}) == {"cat": 1, "dog": 0}
    assert label_classes(("cat", "emu"), {"dog": 0, "cat": 1}) == {"cat": 0, "emu": 1}


def test_questions_have_images_too(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "vqa", tmp_path / "vqa")
    shutil.copytree(world / "images", tmp_path / "images")
    data, _ = open_images(str(tmp_path / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json"))
    assert data[0].image.size == (SMALL.image_size, SMALL.image_size)


def test_augmented_images_are_a_function_of_the_seed(classes: Path) -> None:
    make_noise(classes)
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


def test_a_folder_of_images_has_no_splits(classes: Path, world: Path) -> None:
    with pytest.raises(NoSuchSplit, match="has no splits, .*'val'"):
        open_images(str(classes / "cat"), split="val")
    assert len(open_images(str(world / "coco"), split="val")[0]) == 5
