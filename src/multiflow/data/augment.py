"""Augmentation of the published calibration and training: random crops, flips and RandAugment (arXiv 1909.13719).

A crop of a share of 0.2 to 1 of the image, or of another range (width / height from 3/4 to 4/3), resized; a flip with
probability 1/2; then ``RandAugment(2, 7)``: two operations drawn of ten, each applied with probability 1/2 at magnitude
7 of 10. Images with boxes are not cropped and take the operations that move nothing. Nothing is flipped whose text says
left or right; the published calibration looked for that in regions alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageOps

from multiflow.data.dataset import Box
from multiflow.data.images import BICUBIC, BILINEAR

AUGMENTATIONS = ("paper",)
CROP = (0.2, 1.0)  # share of the area
RATIO = (3 / 4, 4 / 3)  # width / height
FLIP = 0.5
OPERATIONS, APPLY = 2, 0.5
MAGNITUDE = 7 / 10
GREY = (128, 128, 128)  # what moves in from outside of the image
SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def augment_image(
    image: Image.Image | np.ndarray, text: str, size: int, chance: Generator, *, crop: tuple[float, float] = CROP
) -> np.ndarray:
    """Return an augmented image as a uint8 array (size, size, 3).

    Args:
        image: RGB, as `decode` returns it.
        text: its caption; one that says left or right forbids the flip.
        size: height and width of the result in pixels.
        chance: where every random choice comes from.
        crop: least and largest share of the image that is kept.
    """
    picture = _picture(image)
    area = random_crop(picture.size, chance, crop)
    picture = picture.resize((size, size), BICUBIC, box=area)
    if chance.random() < FLIP and not SIDES.search(text):
        picture = ImageOps.mirror(picture)
    return np.asarray(rand_augment(picture, tuple(OPERATION), chance))


def augment_regions(
    image: Image.Image | np.ndarray, regions: Sequence[tuple[str, Box | None]], size: int, chance: Generator
) -> tuple[Image.Image, list[tuple[str, Box | None]]]:
    """Return an image of size x size in other colours, perhaps flipped, with its (text, box) to match."""
    picture = _picture(image)
    x, y = size / picture.width, size / picture.height
    picture = picture.resize((size, size), BICUBIC)
    flip = chance.random() < FLIP and not any(SIDES.search(text) for text, _ in regions)
    picture = rand_augment(ImageOps.mirror(picture) if flip else picture, COLOURS, chance)
    return picture, [(text, _moved(box, x, y, size if flip else None)) for text, box in regions]


def random_crop(
    size: tuple[int, int], chance: Generator, share: tuple[float, float] = CROP
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random part of an image of (width, height).

    It has a share of the area drawn between the two given, up to rounding; of an image that is too long for the ratios
    it is the middle.
    """
    width, height = size
    for _ in range(10):
        area = width * height * chance.uniform(*share)
        ratio = math.exp(chance.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(chance.integers(width - w + 1)), int(chance.integers(height - h + 1))
            return left, top, left + w, top + h
    # A very long image: the middle of it, as wide or as high as the ratios allow.
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def rand_augment(image: Image.Image, names: Sequence[str], chance: Generator) -> Image.Image:
    """Apply operations drawn from `names`; those with a direction go either way."""
    for number in chance.integers(len(names), size=OPERATIONS).tolist():
        apply, sign = chance.random() < APPLY, 1 if chance.random() < 0.5 else -1
        if apply:
            image = OPERATION[names[number]](image, sign)
    return image


def _affine(*matrix: float) -> Callable[[Image.Image, int], Image.Image]:
    """Make the operation that moves pixels by ``x' = x + (a x + b y + c)``, ``y' = y + (d x + e y + f)``."""

    def operation(image: Image.Image, sign: int) -> Image.Image:
        a, b, c, d, e, f = (sign * value for value in matrix)
        data = (1 + a, b, c, d, 1 + e, f)
        return image.transform(image.size, Image.Transform.AFFINE, data, BILINEAR, fillcolor=GREY)

    return operation


OPERATION: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "identity": lambda image, sign: image,
    "autocontrast": lambda image, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, sign: ImageOps.equalize(image),
    "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * MAGNITUDE),
    "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * MAGNITUDE),
    "shear_x": _affine(0, 0.3 * MAGNITUDE, 0, 0, 0, 0),
    "shear_y": _affine(0, 0, 0, 0.3 * MAGNITUDE, 0, 0),
    "translate_x": _affine(0, 0, 10 * MAGNITUDE, 0, 0, 0),
    "translate_y": _affine(0, 0, 0, 0, 0, 10 * MAGNITUDE),
    "rotate": lambda image, sign: image.rotate(sign * 30 * MAGNITUDE, BILINEAR, fillcolor=GREY),
}
COLOURS = ("identity", "autocontrast", "equalize", "brightness", "sharpness")


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _moved(box: Box | None, x: float, y: float, flipped_in: int | None) -> Box | None:
    """Scale a box by (x, y) and, where the width of its flipped image is given, mirror it."""
    if box is None:
        return None
    left, top, width, height = box[0] * x, box[1] * y, box[2] * x, box[3] * y
    return (left if flipped_in is None else flipped_in - left - width, top, width, height)
