from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data.collate import clip_box, collate_pairs, collate_regions, touched_patches
from tests.data.worlds import picture


def test_a_batch_of_pairs(tokenizer):
    images = [picture(0), Image.fromarray(picture(9))]
    batch = collate_pairs(images, ["a red square", "two"], tokenizer=tokenizer, image_size=16)
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
    assert shapes == {
        "pixel_values": (2, 3, 16, 16),
        "input_ids": (2, 4),
        "attention_mask": (2, 4),
        "mlm_input_ids": (2, 4),
        "mlm_positions": (2, 1),
        "mlm_labels": (2, 1),
    }
    assert batch["pixel_values"].dtype == torch.float32
    assert all(t.dtype == torch.int64 for name, t in batch.items() if name != "pixel_values")


def test_a_batch_of_one_without_mlm(tokenizer):
    batch = collate_pairs([picture(1)], ["a"], tokenizer=tokenizer, image_size=16, mlm=False)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    assert batch["input_ids"].shape == (1, 2)


def test_a_stack_of_scenes(tokenizer):
    stack = np.stack([picture(i, 16, 16) for i in range(3)])
    batch = collate_pairs(stack, ["a"] * 3, tokenizer=tokenizer, image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    assert (batch["pixel_values"].mean((1, 2, 3)) * 255).round().tolist() == [0, 1, 2]


def test_the_same_seed_and_position_give_the_same_batch(tokenizer):
    def make(**where):
        texts = ["a small red circle left of two big green square"] * 3
        return collate_pairs([picture(0)] * 3, texts, tokenizer=tokenizer, image_size=16, **where)["mlm_input_ids"]

    assert torch.equal(make(seed=1, position=2), make(seed=1, position=2))
    assert not torch.equal(make(seed=1, position=2), make(seed=1, position=3))


def test_wrong_pairs_are_refused(tokenizer):
    with pytest.raises(MultiflowError, match=r"2 images and 1 captions"):
        collate_pairs([picture(0)] * 2, ["a"], tokenizer=tokenizer, image_size=16)
    with pytest.raises(MultiflowError, match=r"empty batch"):
        collate_pairs([], [], tokenizer=tokenizer, image_size=16)


def test_a_batch_of_regions(tokenizer):
    regions = [[("a red square", (0, 0, 10, 5)), ("the image", None)], [("two", (15, 4, 100, 100))]]
    images = [picture(0, 20, 10), Image.fromarray(picture(1, 30, 8))]
    batch = collate_regions(images, regions, tokenizer=tokenizer, image_size=16, patch_size=8)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert batch["is_image"].tolist() == [0, 1, 0]
    # Boxes are clipped to the image: the last one covers the lower right quarter of 30 x 8.
    expected = [[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.75, 0.75, 0.5, 0.5]]
    torch.testing.assert_close(batch["boxes"], torch.tensor(expected))
    assert batch["patch_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]]
    assert batch["patch_mask"].dtype == batch["is_image"].dtype == batch["image_index"].dtype == torch.int64
    assert batch["input_ids"].shape[0] == batch["mlm_labels"].shape[0] == 3


def test_touched_patches_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    size, patch = 24, 4
    side = size // patch
    for _ in range(200):
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(1, size - x + 1), rng.integers(1, size - y + 1)
        expected = np.zeros((side, side), np.int64)
        for row in range(side):
            for column in range(side):
                overlap_x = min(x + w, (column + 1) * patch) - max(x, column * patch)
                overlap_y = min(y + h, (row + 1) * patch) - max(y, row * patch)
                expected[row, column] = overlap_x > 0 and overlap_y > 0
        box = np.array([[(x + w / 2) / size, (y + h / 2) / size, w / size, h / size]])
        mask = touched_patches(box, side)
        np.testing.assert_array_equal(mask[0, 1:], expected.ravel())
        assert mask[0, 0] == 1


def test_a_tiny_box_at_the_far_edge_touches_one_patch():
    mask = touched_patches(np.array([[1.0, 1.0, 1e-9, 1e-9], [0.0, 0.0, 1e-9, 1e-9]]), 3)
    assert mask[:, 1:].sum(1).tolist() == [1, 1]
    assert mask[0, 9] == mask[1, 1] == 1


def test_boxes_are_clipped():
    assert clip_box((-5, 2, 10, 100), (20, 10)) == (0, 2, 5, 8)
    assert clip_box((3, 4, 5, 6), (20, 10)) == (3, 4, 5, 6)
    for outside in ((20, 0, 5, 5), (-5, 0, 5, 5), (0, 10, 5, 5), (2, 2, 0, 3), (2, 2, math.nan, 3)):
        assert clip_box(outside, (20, 10)) is None


def test_wrong_regions_are_refused(tokenizer):
    def make(images, regions, patch_size=8):
        return collate_regions(images, regions, tokenizer=tokenizer, image_size=16, patch_size=patch_size)

    with pytest.raises(MultiflowError, match=r"box \(30, 0, 5, 5\) .* 20 x 10"):
        make([picture(0)], [[("a", (30, 0, 5, 5))]])
    with pytest.raises(MultiflowError, match=r"no region for image 1"):
        make([picture(0)] * 2, [[("a", None)], []])
    with pytest.raises(MultiflowError, match=r"1 images and regions of 2"):
        make([picture(0)], [[("a", None)], [("a", None)]])
    with pytest.raises(MultiflowError, match=r"no image"):
        make([], [])
    with pytest.raises(MultiflowError, match=r"patches of 7 pixels do not tile an image of 16"):
        make([picture(0)], [[("a", None)]], patch_size=7)
