"""Images to pixel values: Pillow resizing and the normalisation of Hugging Face's image processors, bit for bit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image

from multiflow.base.errors import MultiflowError

Picture: TypeAlias = "Image.Image | np.ndarray | bytes"
"""A Pillow image, a uint8 array (H, W, 3) or (H, W), or the bytes of an image file."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of X-VLM and BLIP, for values in [0, 1]."""
VIT_MEAN = VIT_STD = (0.5, 0.5, 0.5)

BICUBIC = Image.Resampling.BICUBIC
BILINEAR = Image.Resampling.BILINEAR

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, cut or no images."""


def decode(picture: Picture) -> Image.Image | np.ndarray:
    """Return the picture fully read: an RGB Pillow image, or the uint8 array (H, W, 3) that was given.

    Errors: whatever `UNREADABLE` lists for bytes that are no image; MultiflowError for another type of value.
    """
    if isinstance(picture, np.ndarray):
        return _check_array(picture)
    if isinstance(picture, bytes):
        picture = Image.open(io.BytesIO(picture))
    if not isinstance(picture, Image.Image):
        raise MultiflowError(
            f"an image is a {type(picture).__name__}; expected a PIL image, a uint8 array (H, W, 3) or the bytes of a "
            "file"
        )
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")
    picture.load()
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def size_of(picture: Image.Image | np.ndarray) -> tuple[int, int]:
    """Width and height in pixels."""
    return (picture.shape[1], picture.shape[0]) if isinstance(picture, np.ndarray) else picture.size


def resize(picture: Picture, size: int, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    """Return the picture as a uint8 array (size, size, 3), resized only if it has another size."""
    image = decode(picture)
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


def _check_array(array: np.ndarray) -> np.ndarray:
    """Refuse anything but uint8 (H, W, 3); grey images (H, W) get three equal channels."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise MultiflowError(
            f"an image array is {array.dtype} of shape {array.shape}; expected uint8 values of shape (height, width, 3)"
        )
    return array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
