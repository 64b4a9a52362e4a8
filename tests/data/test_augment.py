from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from multiflow.base.errors import MultiflowError
from multiflow.data import Batches, Inputs, open_data
from multiflow.data.augment import (
    COLOURS,
    OPERATION,
    augment_image,
    augment_regions,
    rand_augment,
    random_crop,
)
from tests.data.worlds import picture, write_images, write_json


def chances(count):
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def photo():
    """Random colours, red growing to the right."""
    pixels = np.random.default_rng(0).integers(0, 100, (40, 60, 3)).astype(np.uint8)
    pixels[:, :, 0] = np.linspace(20, 220, 60).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (1, 1), (400, 7), (7, 400)])
def test_crops_lie_inside_and_have_the_wanted_share(size):
    width, height = size
    crops = [random_crop(size, chance) for chance in chances(200)]
    for left, top, right, bottom in crops:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    if min(size) >= 40:
        shares = [(r - x) * (b - y) / (width * height) for x, y, r, b in crops]
        ratios = [(r - x) / (b - y) for x, y, r, b in crops]
        assert min(shares) > 0.18
        assert max(shares) > 0.8
        assert 0.7 < min(ratios) < 0.85 < 1.2 < max(ratios) < 1.4


def test_crops_of_another_range():
    crops = [random_crop((60, 40), chance, (0.5, 0.7)) for chance in chances(200)]
    shares = [(r - x) * (b - y) / (60 * 40) for x, y, r, b in crops]
    assert 0.48 < min(shares) < 0.53
    assert 0.67 < max(shares) < 0.72


def test_an_image_is_cropped_to_the_range_given(photo):
    whole = [augment_image(photo, "left", 20, chance, crop=(1.0, 1.0)) for chance in chances(20)]
    small = [augment_image(photo, "left", 20, chance, crop=(0.01, 0.02)) for chance in chances(20)]
    spread = [[np.ptp(x[:, :, 0].astype(int).mean(0)) for x in made] for made in (whole, small)]
    assert np.median(spread[0]) > 3 * np.median(spread[1])  # red grows to the right
    again = [augment_image(photo, "left", 20, chance, crop=(1.0, 1.0)) for chance in chances(20)]
    assert all(map(np.array_equal, whole, again))


def test_a_long_image_is_cropped_to_its_middle():
    # No ratio within 3/4 to 4/3 fits a share of 0.2 of it.
    assert random_crop((400, 7), chances(1)[0]) == (195, 0, 204, 7)
    assert random_crop((7, 400), chances(1)[0]) == (0, 195, 7, 204)


def test_the_same_chance_gives_the_same_image(photo):
    one, same, other = (augment_image(photo, "a ball", 16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (16, 16, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(one, augment_image(np.asarray(photo), "a ball", 16, np.random.default_rng(1)))


@pytest.mark.parametrize(
    ("text", "flips"),
    [("a bright ball", True), ("a ball, Left of a box", False), ("the rightmost one", False), ("outright", True)],
)
def test_flips_respect_left_and_right(photo, text, flips):
    red = [augment_image(photo, text, 32, chance)[16, :, 0].astype(int) for chance in chances(60)]
    mirrored = sum(row[8] > row[24] for row in red)
    assert (15 < mirrored < 45) if flips else mirrored == 0


def test_operations_at_magnitude_7(photo):
    assert len(OPERATION) == 10
    assert OPERATION["identity"](photo, 1) is photo
    assert np.array_equal(OPERATION["brightness"](photo, 1), ImageEnhance.Brightness(photo).enhance(1.36))
    assert np.array_equal(OPERATION["sharpness"](photo, 1), ImageEnhance.Sharpness(photo).enhance(1.36))
    pixels, grey = np.asarray(photo), [128] * 3
    right, left = (np.asarray(OPERATION["translate_x"](photo, sign)) for sign in (-1, 1))
    assert np.array_equal(right[:, 7:], pixels[:, :-7])
    assert np.array_equal(left[:, :-7], pixels[:, 7:])
    assert right[5, 3].tolist() == left[5, -3].tolist() == grey
    down = np.asarray(OPERATION["translate_y"](photo, -1))
    assert np.array_equal(down[7:], pixels[:-7])
    # Sheared by .21: the row in depth y moves by .21 y.
    plain = Image.fromarray(np.repeat(pixels[:1], 40, 0))
    sheared = np.asarray(OPERATION["shear_x"](plain, 1))[:, :, 0].astype(int)
    assert np.abs(sheared[30, :45] - pixels[0, :, 0].astype(int)[np.arange(45) + round(0.21 * 30.5)]).max() <= 3
    tall = Image.fromarray(np.repeat(pixels[:, :1], 60, 1))
    assert np.asarray(OPERATION["shear_y"](tall, 1))[39, 50].tolist() == grey
    assert np.array_equal(
        OPERATION["rotate"](photo, 1), photo.rotate(21, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
    )


def test_rand_augment_applies_two_operations_half_of_the_time(photo):
    # Two draws of three colour operations that change this image, each applied with probability 1/2.
    names = ("equalize", "brightness", "sharpness")
    unchanged = sum(rand_augment(photo, names, chance) is photo for chance in chances(400))
    assert 70 < unchanged < 130


def test_boxes_are_mirrored_with_their_image(photo):
    regions = [("a ball", (6.0, 10.0, 12.0, 20.0)), ("all of it", None)]
    seen = set()
    for chance in chances(20):
        image, moved = augment_regions(photo, regions, 30, chance)
        assert image.size == (30, 30)
        (text, box), whole = moved
        assert (text, whole) == ("a ball", ("all of it", None))
        red = np.asarray(image)[15, :, 0].astype(int)
        flipped = bool(red[5] > red[25])
        assert box == pytest.approx((30 - 3 - 6 if flipped else 3, 7.5, 6, 15))
        seen.add(flipped)
    assert seen == {True, False}
    for chance in chances(20):
        _, moved = augment_regions(photo, [*regions, ("to the left", (0.0, 0.0, 2.0, 2.0))], 30, chance)
        assert moved[0][1] == pytest.approx((3, 7.5, 6, 15))


def test_colour_operations_move_nothing(photo):
    grey = Image.fromarray(np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2))
    for name in COLOURS:
        row = np.asarray(OPERATION[name](grey, 1))[20, :, 0].astype(int)
        assert (np.diff(row) >= 0).all()


@pytest.fixture
def inputs(tokenizer):
    return Inputs(tokenizer, image_size=16, patch_size=8, mean=(0, 0, 0), std=(1, 1, 1), augment="paper")


def test_batches_are_a_function_of_seed_and_position(inputs):
    noise = np.random.default_rng(0).integers(0, 256, (8, 20, 20, 3)).astype(np.uint8)
    batches = Batches([(image, "a small circle") for image in noise], inputs, batch_size=4)
    first, second = [batch["pixel_values"] for batch in batches], [batch["pixel_values"] for batch in batches]
    assert all(map(torch.equal, first, second))
    assert torch.equal(batches.batch(1)["pixel_values"], first[1])
    assert all(map(torch.equal, [b["pixel_values"] for b in replace(batches, workers=1)], first))
    plain = replace(batches, inputs=replace(inputs, augment=None)).batch(0)
    assert not torch.equal(plain["pixel_values"], first[0])
    assert torch.equal(plain["input_ids"], batches.batch(0)["input_ids"])


def test_a_broken_image_changes_no_other(tmp_path, inputs):
    write_images(tmp_path, ["0.png", "1.png", "2.png"])
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    write_json(tmp_path / "captions.json", {f"{i}.png": "a circle" for i in range(3)})
    batches = Batches(open_data(tmp_path), inputs, shuffle=False)
    whole = batches.batch(0)["pixel_values"]
    (tmp_path / "1.png").write_bytes(b"x")
    assert torch.equal(batches.batch(0)["pixel_values"], whole[[0, 2]])


def test_region_batches_are_augmented_with_boxes_to_match(tmp_path, inputs):
    half = np.zeros((20, 20, 3), np.uint8)
    half[:, :10] = 255
    Image.fromarray(half).save(tmp_path / "a.png")
    element = {"bb": [0, 0, 10, 20], "caption": "a circle"}
    path = write_json(tmp_path / "regions.json", [{"image": "a.png", "elems": [element]}])
    seen = set()
    for seed in range(12):
        batch = Batches(open_data(path), inputs, seed=seed).batch(0)
        centre = batch["boxes"][0, 0].item()
        assert batch["boxes"][0].tolist() == pytest.approx([centre, 0.5, 0.5, 1])
        white = batch["pixel_values"][0, 0, 8].numpy()
        assert (white[2] > 0.5) == (centre < 0.5)  # the white half is where its box is
        assert batch["patch_mask"][0, 1:].tolist() == ([1, 0, 1, 0] if centre < 0.5 else [0, 1, 0, 1])
        seen.add(centre)
    assert seen == {0.25, 0.75}


def test_an_unknown_augmentation(tokenizer):
    with pytest.raises(MultiflowError, match="'papr'; known: paper; .*mean 'paper'"):
        Inputs(tokenizer, 16, augment="papr")


def test_pictures_in_memory(inputs):
    (batch,) = Batches([(picture(100), "a circle")], inputs)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
