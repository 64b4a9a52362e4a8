from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import BrokenItem
from multiflow.data.images import BICUBIC, BILINEAR, CLIP_MEAN, CLIP_STD, VIT_MEAN, VIT_STD, decode, resize, to_pixels


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (17, 23)])
def test_pixels_equal_the_clip_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    image = Image.fromarray(noise(*size))
    theirs = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(to_pixels([image], 32, CLIP_MEAN, CLIP_STD, BICUBIC), theirs)


def test_pixels_equal_the_vit_processor():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 24, "width": 24})
    image = Image.fromarray(noise(50, 40))
    theirs = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(to_pixels([image], 24, VIT_MEAN, VIT_STD, BILINEAR), theirs)


def test_arrays_images_and_files_give_the_same_pixels():
    array = noise(20, 10)
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    one, two, three = to_pixels([array, image, buffer.getvalue()], 8)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_an_image_of_the_right_size_is_not_touched():
    array = noise(16, 16)
    assert resize(array, 16) is array
    pixels = to_pixels([array], 16, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(pixels[0].transpose(1, 2, 0) * 255, array)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    source = Image.fromarray(noise(6, 6))
    image = source.convert("L").convert(mode) if mode == "LA" else source.convert(mode)
    decoded = decode(image)
    assert isinstance(decoded, Image.Image)
    assert decoded.mode == "RGB"


def test_a_palette_with_transparent_entries_warns_of_nothing():
    image = Image.fromarray(noise(6, 6)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128, 255]))
    assert decode(buffer.getvalue()).mode == "RGB"


def test_grey_arrays_get_three_channels():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    pixels = to_pixels([grey], 4, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(pixels[0, 0], pixels[0, 2])


def test_a_cut_file_is_a_broken_item():
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, "JPEG")
    with pytest.raises(BrokenItem, match=r"truncated"):
        decode(buffer.getvalue()[:-200])


def test_wrong_values_are_refused():
    with pytest.raises(MultiflowError, match=r"float64 of shape \(4, 4, 3\); expected uint8"):
        to_pixels([np.zeros((4, 4, 3))], 4)
    with pytest.raises(MultiflowError, match=r"uint8 of shape \(3, 4, 4\)"):
        to_pixels([np.zeros((3, 4, 4), np.uint8)], 4)
    with pytest.raises(MultiflowError, match=r"an image is a str"):
        to_pixels(["a.jpg"], 4)  # type: ignore[list-item]
    with pytest.raises(MultiflowError, match=r"image size 0"):
        to_pixels([noise(4, 4)], 0)
