from __future__ import annotations

import io
import struct

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


def tiff(levels: np.ndarray, bits: int, *, kind: int = 1, black_is_zero: bool = True, planes: bool = False) -> bytes:
    """An uncompressed TIFF: grey of shape (H, W), or packed as bytes (n,) of a 6 x 10 image, or RGB (H, W, 3)."""
    height, width = levels.shape[:2] if levels.ndim > 1 else (6, 10)
    samples = 3 if levels.ndim == 3 else 1
    data = (np.moveaxis(levels, -1, 0) if planes else levels).tobytes()
    strips = samples if planes else 1
    entries = {
        **{256: [width], 257: [height], 258: [bits] * samples, 259: [1]},
        **{262: [2 if samples > 1 else int(black_is_zero)], 273: [0] * strips, 277: [samples], 278: [height]},
        **{279: [len(data) // strips] * strips, 284: [1 + planes], 339: [kind] * samples},
    }
    begin = 8 + 2 + 12 * len(entries) + 4
    long = sum(4 * len(values) for values in entries.values() if len(values) > 1)
    entries[273] = [begin + long + number * (len(data) // strips) for number in range(strips)]
    listed, after = b"", b""
    for tag, values in entries.items():
        written = struct.pack(f"<{len(values)}I", *values)
        place = written if len(values) == 1 else struct.pack("<I", begin + len(after))
        listed += struct.pack("<HHI", tag, 4, len(values)) + place
        after += written if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4) + after + data


SHARES = np.linspace(0, 1, 60).reshape(6, 10)


@pytest.mark.parametrize("black_is_zero", [True, False])
@pytest.mark.parametrize(
    ("white", "dtype", "kind"),
    [(255, "u1", 1), (65535, "<u2", 1), (32767, "<i2", 2), (1, "<f4", 3), (255, "<f4", 3), (4095, "12 bits", 1)],
)
def test_grey_levels_of_a_tiff_count_as_its_tags_say(white, dtype, kind, black_is_zero):
    levels = SHARES * white if kind == 3 else np.rint(SHARES * white)
    if dtype == "12 bits":
        bits = "".join(f"{int(level):012b}" for level in levels.flat)
        data = tiff(np.frombuffer(int(bits, 2).to_bytes(90, "big"), np.uint8), 12, black_is_zero=black_is_zero)
    else:
        bits = 8 * np.dtype(dtype).itemsize
        data = tiff(levels.astype(dtype), bits, kind=kind, black_is_zero=black_is_zero)
    if not black_is_zero and dtype in ("<i2", "12 bits"):  # which Pillow does not know
        with pytest.raises(BrokenItem, match="not an image file"):
            decode(data)
        return
    shares = SHARES if black_is_zero else 1 - SHARES
    assert np.abs(np.asarray(decode(data))[:, :, 0] - 255 * shares).max() <= 1


def test_levels_with_a_sign_are_eight_bits_where_they_fit_and_never_negative():
    assert np.asarray(decode(tiff(np.full((6, 10), 255, "<i2"), 16, kind=2))).min() == 255
    for levels, bits in ((np.full((6, 10), -1, "<i2"), 16), (np.full((6, 10), 7, "i1"), 8)):
        with pytest.raises(BrokenItem, match="grey levels"):
            decode(tiff(levels, bits, kind=2))


def test_planes_of_sixteen_bits_are_refused_and_those_of_eight_read():
    colours = noise(10, 6)
    np.testing.assert_array_equal(decode(tiff(colours, 8, planes=True)), colours)
    np.testing.assert_array_equal(decode(tiff(colours.astype("<u2") * 257, 16)), colours)
    with pytest.raises(BrokenItem, match="planes of 16 bits"):
        decode(tiff(colours.astype("<u2") * 257, 16, planes=True))


@pytest.mark.parametrize("of", ["opening", "decoding"])
@pytest.mark.parametrize("there", [True, False])
def test_memory_that_ends_is_no_broken_image_unless_there_is_enough(of, there, monkeypatch):
    """A damaged header lets a decoder ask for anything; one that is whole asks for what there must be."""

    def ended(*_, **__):
        raise MemoryError

    def allocate(size):
        assert size >= 4 * 6 * 10
        if not there:
            raise MemoryError

    data = tiff(noise(10, 6), 8)
    monkeypatch.setattr("multiflow.base.guards.bytearray", allocate, raising=False)
    if of == "opening":
        monkeypatch.setattr(Image, "open", ended)
    else:
        monkeypatch.setattr(Image.Image, "convert", ended)
        monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", ended)
    with pytest.raises(BrokenItem if there else MemoryError):
        decode(data)
