"""Image files to pixel values: every image of the package is opened here, by a list of formats.

Resizing is Pillow's, the normalisation that of Hugging Face's image processors, bit for bit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta, Struct, ValidationError, convert
from PIL import Image, ImageOps

from multiflow.base.errors import MultiflowError
from multiflow.base.reading import read_json, read_regular
from multiflow.data.dataset import BrokenItem

Picture: TypeAlias = "Image.Image | np.ndarray | bytes"
"""A Pillow image, a uint8 array (H, W, 3) or (H, W), or the bytes of an image file."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of X-VLM and BLIP, for values in [0, 1]."""
VIT_MEAN = VIT_STD = (0.5, 0.5, 0.5)

Share = Annotated[float, Meta(ge=-1e3, le=1e3)]
Spread = Annotated[float, Meta(gt=0, le=1e3)]

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats of Pillow that are read. Others may start programs (EPS) or are no photographs."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MOST_PIXELS = 89_478_485
"""Pixels of an image at most, Pillow's own limit: its decoded form takes a quarter of a gigabyte."""

MOST_BYTES = 2**29
"""Bytes of an image file at most."""

ORIENTATION = 0x0112  # the EXIF tag


def open_image(data: bytes, key: str) -> Image.Image:
    """Open an image from the bytes of its file; pixels are decoded by `decode`, when they are needed.

    Raises:
        BrokenItem: no image of one of the `FORMATS`, or one of more than `MOST_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise BrokenItem(key, "not an image file") from error
    except Exception as error:  # of altered bytes Pillow raises anything
        raise BrokenItem(key, _reason(error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise BrokenItem(key, f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS} in all")
    return image


def load_image(path: str, key: str) -> Image.Image:
    """Open an image file as `open_image` does; the file is closed at once."""
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise BrokenItem(key, error.strerror or str(error)) from error
    return open_image(data, key)


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if is_image(name) and not os.path.isdir(folder / name))


def decode(picture: Picture, key: str = "image") -> Image.Image | np.ndarray:
    """Return the picture fully read and upright: an RGB Pillow image, or the uint8 array (H, W, 3) that was given.

    Grey levels of 16 bits become 8 bits; those of other ranges, and float values, must lie in 0..255 or 0..65535, or in
    0..1 or 0..255. Images are turned as their EXIF orientation says.

    Raises:
        BrokenItem: bytes that are no whole image, or grey levels of no known range.
        MultiflowError: another type of value.
    """
    if isinstance(picture, np.ndarray):
        return _check_array(picture)
    if isinstance(picture, bytes):
        picture = open_image(picture, key)
    if not isinstance(picture, Image.Image):
        raise MultiflowError(
            f"an image is a {type(picture).__name__}; expected a PIL image, a uint8 array (H, W, 3) or the bytes of a "
            "file"
        )
    try:
        picture.load()
        if is_turned(picture):  # of a TIFF, Pillow has done it while loading
            picture = ImageOps.exif_transpose(picture)
        if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
            picture = picture.convert("RGBA")
        if picture.mode.startswith("I") or picture.mode == "F":
            picture = _eight_bits(picture, key)
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except BrokenItem:
        raise
    except Exception as error:  # of altered bytes Pillow raises anything
        raise BrokenItem(key, _reason(error)) from error


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation says to turn or mirror an image; one that cannot be read says nothing."""
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # of altered bytes Pillow raises anything
        return False


def _eight_bits(image: Image.Image, key: str) -> Image.Image:
    """Scale grey levels of 16 or 32 bits, or float values, to 0..255 by the range that holds them all."""
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    ranges: tuple[float, ...] = (1.0, 255.0) if levels.dtype.kind == "f" else (255.0, 65535.0)
    if image.mode.startswith("I;16") or image.format == "PNG":  # the file itself says 16 bits
        ranges = (65535.0,)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is None:
        expected = " or ".join(f"0..{top:.0f}" for top in ranges)
        raise BrokenItem(key, f"its grey levels are {low:g} to {high:g}; expected {expected}")
    return Image.fromarray(np.rint(levels * (255 / top)).astype(np.uint8))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def size_of(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    return (picture.shape[1], picture.shape[0]) if isinstance(picture, np.ndarray) else picture.size


def resize(picture: Picture, size: int, resample: Image.Resampling = BICUBIC, key: str = "image") -> np.ndarray:
    """Return the picture as a uint8 array (size, size, 3), resized only if it has another size."""
    image = decode(picture, key)
    if size_of(image) == (size, size):
        return np.asarray(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return np.asarray(image.resize((size, size), resample))


def to_pixels(
    pictures: Sequence[Picture] | np.ndarray,
    size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    resample: Image.Resampling = BICUBIC,
) -> np.ndarray:
    """Return pixel values (images, 3, size, size) in float32: ``(value / 255 - mean) / std``.

    Equal to the Pillow image processors of transformers with ``size={"height": size, "width": size}``.

    >>> to_pixels([np.zeros((8, 8, 3), np.uint8)], size=4).shape
    (1, 3, 4, 4)
    """
    if size < 1:
        raise MultiflowError(f"image size {size} was given; expected a positive number of pixels")
    shift, scale = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (mean, std))
    pixels = np.empty((len(pictures), 3, size, size), np.float32)
    for out, picture in zip(pixels, pictures, strict=True):
        np.divide(resize(picture, size, resample).transpose(2, 0, 1), np.float32(255), out=out)
        out -= shift
        out /= scale
    return pixels


class _Statistics(Struct):
    image_mean: tuple[Share, Share, Share] | None = None
    image_std: tuple[Spread, Spread, Spread] | None = None


def read_statistics(path: Path) -> dict[str, tuple[float, ...]]:
    """Return ``mean`` and ``std`` of the pixels from the file of an image processor; nothing where it lacks them.

    Raises:
        MultiflowError: the file is damaged, or they are no three numbers each.
    """
    try:
        says = convert(read_json(path), _Statistics)
    except ValidationError as error:
        said = str(error).replace("`", "")
        raise MultiflowError(f"the image processor '{path}' is damaged ({said}); copy it again") from error
    if says.image_mean is None or says.image_std is None:
        return {}
    return {"mean": says.image_mean, "std": says.image_std}


def _check_array(array: np.ndarray) -> np.ndarray:
    """Refuse anything but uint8 (H, W, 3); grey images (H, W) get three equal channels."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise MultiflowError(
            f"an image array is {array.dtype} of shape {array.shape}; expected uint8 values of shape (height, width, 3)"
        )
    return array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
