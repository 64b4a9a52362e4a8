from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data import to_pixels
from multiflow.worlds.digits import vit as module
from multiflow.worlds.digits.vit import CLASSES, digit_batches, digits, write_digits


def test_the_splits_are_fixed_whole_and_apart():
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert train.shape == (1437, 8, 8)
    assert test.shape == (360, 8, 8)
    assert train.dtype == test.dtype == np.uint8
    assert (train.min(), train.max()) == (0, 255)
    assert test_labels[:12].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    from sklearn.datasets import load_digits

    everything = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    both = np.concatenate([train, test])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, both))
    assert not set(map(bytes, train)) & set(map(bytes, test))
    for labels in (train_labels, test_labels):
        assert set(labels.tolist()) == set(range(CLASSES))


def test_batches_hold_the_images_in_order():
    batches = digit_batches("test", batch_size=100)
    assert [len(batch["labels"]) for batch in batches] == [100, 100, 100, 60]
    images, labels = digits("test")
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == labels.tolist()
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    assert pixels.shape == (360, 3, 16, 16)
    assert torch.equal(pixels[7], torch.from_numpy(to_pixels(images[7:8], 16, (0.5,) * 3, (0.5,) * 3))[0])
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert [len(batch["labels"]) for batch in digit_batches(batch_size=32, limit=2)] == [32, 32]
    assert digit_batches(limit=1, image_size=24)[0]["pixel_values"].shape == (32, 3, 24, 24)
    assert len(digit_batches(limit=999)) == 45


def test_the_folders_hold_the_same_images(tmp_path):
    folder = write_digits(tmp_path / "digits")
    assert folder == tmp_path / "digits"
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    for split in ("train", "test"):
        images, labels = digits(split)
        paths = sorted((folder / split).glob("*/*.png"), key=lambda path: path.name)
        assert [int(path.parent.name) for path in paths] == labels.tolist()
        assert all(np.array_equal(Image.open(path), image) for path, image in zip(paths, images, strict=True))
    with pytest.raises(MultiflowError, match="already holds"):
        write_digits(folder)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (["val"], {}, "val.*train"),
        (["test"], {"batch_size": 0}, "batch_size 0 and limit None were given; expected at least 1"),
        (["test"], {"limit": 0}, "limit 0"),
    ],
)
def test_bad_input_is_refused(args, options, message):
    with pytest.raises(MultiflowError, match=message):
        digit_batches(*args, **options)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    module.digits.cache_clear()
    with pytest.raises(MultiflowError, match="pip install scikit-learn"):
        write_digits(tmp_path / "digits")
    assert not list(tmp_path.iterdir())
