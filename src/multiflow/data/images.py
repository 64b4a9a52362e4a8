"""Image files to pixel values, and data sets whose images are files: names, folders, splits, texts.

Every image of the package is opened here, by a list of formats. Resizing is Pillow's, the normalisation that of Hugging
Face's image processors, bit for bit.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

import numpy as np
from msgspec import Meta, Struct, ValidationError, convert
from PIL import Image, ImageOps

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.files import exists, files_in, read_json, read_regular
from multiflow.base.guards import raise_shortage
from multiflow.data.dataset import BrokenItem, Dataset, Item, Kind, Known, Pair, Skip

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
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # tags of TIFF
SIGNED = 2  # a sample format


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
        raise_shortage(error, len(data))
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
    return sorted(files_in(folder, is_image))


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
        white, inverted = _levels(picture, key)
        picture.load()
        if is_turned(picture):  # of a TIFF, Pillow has done it while loading
            picture = ImageOps.exif_transpose(picture)
        if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
            picture = picture.convert("RGBA")
        if picture.mode.startswith("I") or picture.mode == "F":
            picture = _eight_bits(picture, key, white, inverted)
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    except BrokenItem:
        raise
    except Exception as error:  # of altered bytes Pillow raises anything
        raise_shortage(error, 4 * picture.width * picture.height)
        raise BrokenItem(key, _reason(error)) from error


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation says to turn or mirror an image; one that cannot be read says nothing."""
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # of altered bytes Pillow raises anything
        return False


def _levels(image: Image.Image, key: str) -> tuple[tuple[float, ...], bool]:
    """Return what white may be among grey levels of more than 8 bits, and whether the file counts from white to black.

    What Pillow reads of a TIFF otherwise than its tags say is refused.
    """
    float_or_long: tuple[float, ...] = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    if image.format != "TIFF":
        return ((65535.0,) if image.mode.startswith("I;16") or image.format == "PNG" else float_or_long), False
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    bits, signed = max(tags.get(BITS_PER_SAMPLE, (1,))), SIGNED in tags.get(SAMPLE_FORMAT, (1,))
    if signed and bits == 8:
        raise BrokenItem(key, "its grey levels have 8 bits and a sign; expected levels from 0 on")
    if bits > 8 and tags.get(PLANES, 1) == 2 and tags.get(COMPRESSION, 1) == 1:
        raise BrokenItem(
            key, f"its colours lie in planes of {bits} bits each; expected the colours of a pixel together"
        )
    inverted = tags.get(PHOTOMETRIC, 0) == 0
    if image.mode == "F" or bits > 16:
        return float_or_long, inverted
    return ((255.0, 32767.0) if signed else (2.0**bits - 1,)), inverted


def _eight_bits(image: Image.Image, key: str, white: tuple[float, ...], inverted: bool) -> Image.Image:
    """Scale grey levels of 16 or 32 bits, or float values, to 0..255 by the range that holds them all."""
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    top = next((top for top in white if low >= 0 and high <= top), None)
    if top is None:
        expected = " or ".join(f"0..{top:.0f}" for top in white)
        raise BrokenItem(key, f"its grey levels are {low:g} to {high:g}; expected {expected}")
    scaled = np.rint(levels * (255 / top)).astype(np.uint8)
    return Image.fromarray(255 - scaled if inverted else scaled)


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


WHOLE = "all"
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|validation|val|test-dev|test)(?![a-z])")
TRAIN_FILES = ("vg_qa",)  # the questions of Visual Genome, beside those of VQA v2


class WrongLayout(MultiflowError):
    """A file of annotations lacks something that its layout has."""


class NoSuchSplit(MultiflowError):
    """The data lack the split that was asked for."""

    def __init__(self, message: str, *, field: str | Sequence[str] = "split") -> None:
        super().__init__(message, field=field)

    def called(self, name: str) -> NoSuchSplit:
        """Return the same error for a split that was given by another argument, such as ``val_split``."""
        return NoSuchSplit(self._message.replace("{split", f"{{{name}"), field=name)


def data_of_files(
    kind: Kind,
    layout: str,
    source: Path,
    paths: Sequence[str],
    names: Sequence[str],
    make: Callable[..., Item],
    parts: Sequence[tuple[Any, ...]],
    texts: Sequence[tuple[str, ...]],
    *,
    counts: np.ndarray | None = None,
    skipped: Sequence[Skip] = (),
    classes: Sequence[str] = (),
    load: Callable[[str, str], Any] = load_image,
) -> Dataset[Item]:
    """Make a data set whose images, or sounds, are files.

    Args:
        kind: of its items.
        layout: in words.
        source: the file or folder that was opened.
        paths: of the image of each item.
        names: what errors call each item.
        make: ``make(image, name, *parts[i])`` -> item i.
        parts: what each item holds beside its image.
        texts: captions, answers or class of each item.
        counts: for regions, how many each item has.
        skipped: what was left out.
        classes: of labelled images.
        load: ``load(path, name)`` opens a file.
    """
    read = partial(_read, load, paths, names, make, parts)
    known = partial(_known, paths, texts)
    return Dataset(kind, layout, str(source), len(paths), read, counts, known, tuple(skipped), tuple(classes))


def pairs_of_files(
    layout: str,
    path: Path,
    images: Path | None,
    records: Sequence[tuple[str, tuple[str, ...]]],
    *,
    prompts: Sequence[tuple[str, ...]] = (),
    other_names: Sequence[Sequence[str]] = (),
    skipped: Sequence[Skip] = (),
) -> Dataset[Pair]:
    """Make the data set of image files with captions; those without a caption are noted as skipped.

    Args:
        layout: in words.
        path: the file or folder that was opened.
        images: folder of the images, or None to look around `path`.
        records: name of each image, and its captions.
        prompts: what was asked to get each of the captions of each image; empty = nothing.
        other_names: other ways to name the same images, tried first.
        skipped: what was left out before.
    """
    good = [i for i, (_, texts) in enumerate(records) if texts]
    if not good:
        first = f"; the first was left out: {skipped[0].key} ({skipped[0].reason})" if skipped else ""
        raise MultiflowError(
            f"captions are missing: none of the {len(records) + len(skipped)} images in '{path}' has a caption; "
            f"every image needs at least one{first}"
        )
    skipped = [*skipped, *(Skip(name, "no caption") for name, texts in records if not texts)]
    named = [[names[i] for i in good] for names in (*other_names, [name for name, _ in records])]
    paths = locate(named, path if path.is_dir() else path.parent, images, f"'{path}'")
    texts = [records[i][1] for i in good]
    asked = [prompts[i] for i in good] if prompts else [()] * len(good)
    parts = list(zip(texts, asked, strict=True))
    return data_of_files("pairs", layout, path, paths, named[-1], _make_pair, parts, texts, skipped=skipped)


def _make_pair(image: Image.Image, name: str, captions: tuple[str, ...], prompts: tuple[str, ...]) -> Pair:
    return Pair(image, captions, name, prompts)


def _read(
    load: Callable[[str, str], Any],
    paths: Sequence[str],
    names: Sequence[str],
    make: Callable[..., Item],
    parts: Sequence[tuple[Any, ...]],
    index: int,
) -> Item:
    return make(load(paths[index], names[index]), names[index], *parts[index])


def _known(paths: Sequence[str], texts: Sequence[tuple[str, ...]], index: int) -> Known:
    return Known(paths[index], texts[index])


def texts_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of a string or several, stripped; blank ones are left out.

    >>> texts_of(["a dog ", " "])
    ('a dog',)
    """
    values = [value] if isinstance(value, str) else value or ()
    return tuple(stripped for text in values if (stripped := text.strip()))


def locate(
    manners: Sequence[Sequence[str]], folder: Path, images: Path | None, where: str, what: str = "images"
) -> list[str]:
    """Return the paths of the images that a file names.

    Args:
        manners: the same images named in one or more ways; the first way of which an image exists is taken.
        folder: where the file lies; images are sought there, in its parent and in ``images`` of either.
        images: where to look instead.
        where: the file, for errors.
        what: it names, for errors.

    Errors: MultiflowError if nothing is found, or if a name leads out of its folder.
    """
    if images is not None and not images.is_dir():
        raise MultiflowError(f"the image folder '{images}' does not exist; give it with {{images=DIR}}", field="images")
    roots = [images] if images is not None else [folder, folder / "images", folder.parent, folder.parent / "images"]
    for names in manners:
        for root in roots:
            if any((path := _inside(root, name)) and exists(path) for name in names[:50]):
                return [_inside(root, name) or _refuse(root, name, where) for name in names]
    astray = next((name for name in manners[0] if not any(_inside(root, name) for root in roots)), None)
    if astray is not None:
        _refuse(roots[0], astray, where)
    looked = ", ".join(f"'{root}'" for root in dict.fromkeys(root.resolve() for root in roots))
    raise MultiflowError(
        f"none of the {len(manners[0])} {what} that {where} names were found, such as '{manners[0][0]}'; looked in "
        f"{looked}; give their folder with {{images=DIR}}",
        field="images",
    )


def _inside(root: Path, name: str) -> str | None:
    """Return the path of an image under `root`, or None if its name leads out of it."""
    if ".." not in name and not os.path.isabs(name):
        return os.path.join(root, name)
    base = os.path.abspath(root)
    path = os.path.abspath(os.path.join(base, name))
    return path if os.path.commonpath([base, path]) == base else None


def _refuse(root: Path, name: str, where: str) -> NoReturn:
    raise MultiflowError(
        f"{where} names the image '{name}', outside of the data folder '{root}'; expected a path inside it "
        "(name another folder with {images=DIR})",
        field="images",
    )


def split_in_name(path: Path) -> str | None:
    """Return the split that a file name tells, such as ``val`` from ``coco_karpathy_val.json``.

    >>> split_in_name(Path("v2_OpenEnded_mscoco_train2014_questions.json"))
    'train'
    """
    if path.stem in TRAIN_FILES:
        return "train"
    match = SPLIT_IN_NAME.search(path.stem.lower())
    return {"validation": "val"}.get(match[0], match[0]) if match else None


def choose_split(given: str | None, held: Sequence[str], where: str) -> str:
    """Return the split to read, ``train`` by default; one that is not held is an error that lists those that are."""
    if given in held or (given is None and "train" in held):
        return given or "train"
    what = "no split was given, and there is no 'train'" if given is None else f"split '{given}' is unknown"
    guess = did_you_mean(given or "", held)
    raise NoSuchSplit(f"{what} in {where}; give {{split=NAME}}, one of {', '.join(held)}{guess}")


def refuse_split(split: str | None, what: str) -> None:
    """Raise an error if a split is asked for of data that have none; ``all`` takes them whole."""
    if split not in (None, WHOLE):
        raise NoSuchSplit(
            f"{what} has no splits, so there is no split '{split}'; take it whole with {{split={WHOLE}}}, "
            "or give data that have this split"
        )
