"""Reading the files of a data set: JSON with positions in its errors, image paths that stay inside their folder."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.data.dataset import BrokenItem
from multiflow.data.images import UNREADABLE

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|validation|val|test-dev|test)(?![a-z])")


class WrongLayout(MultiflowError):
    """A file of annotations lacks something that its layout has."""


def read_json(path: Path) -> Any:
    """Read a JSON file, or one with a JSON value on every line (then a list).

    Errors: MultiflowError with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MultiflowError(f"'{path}' is not UTF-8 text (byte {error.start}); expected a JSON file") from error
    except OSError as error:
        raise MultiflowError(f"cannot read '{path}': {error.strerror or error}; check the path") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text[: error.pos]:
            return [_parse_line(path, i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        raise _json_error(path, error.lineno, error) from error


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _json_error(path, number, error) from error


def _json_error(path: Path, line: int, error: json.JSONDecodeError) -> MultiflowError:
    return MultiflowError(
        f"'{path}' is not valid JSON: {error.msg} at line {line}, column {error.colno}; repair it or fetch it again"
    )


def field(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return one field of a JSON record, or raise an error that says which record lacks it."""
    if not isinstance(record, dict):
        raise WrongLayout(f"{where} is {type(record).__name__}; expected an object with '{name}'")
    if name not in record:
        held = ", ".join(f"'{key}'" for key in islice(record, 8)) or "nothing"
        raise WrongLayout(f"{where} has no '{name}' (it has {held}); every entry needs one")
    if not isinstance(record[name], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        raise WrongLayout(f"{where} has '{name}' of type {type(record[name]).__name__}; expected {expected}")
    return record[name]


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """Return the non-blank texts of a string or a list of strings, stripped."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise MultiflowError(f"{where} holds {value!r}; expected a text or a list of texts")
    return tuple(stripped for text in values if (stripped := text.strip()))


def locate(manners: Sequence[Sequence[str]], folder: Path, images: Path | None, where: str) -> list[str]:
    """Return the paths of the images that a file names.

    Args:
        manners: the same images named in one or more ways; the first way of which an image exists is taken.
        folder: where the file lies; images are sought there, in its parent and in ``images`` of either.
        images: where to look instead.
        where: the file, for errors.

    Errors: MultiflowError if nothing is found, or if a name leads out of its folder.
    """
    if images is not None and not images.is_dir():
        raise MultiflowError(f"the image folder '{images}' does not exist; give the folder with images=, --images")
    roots = [images] if images is not None else [folder, folder / "images", folder.parent, folder.parent / "images"]
    for names in manners:
        for root in roots:
            if any((path := _inside(root, name)) and os.path.exists(path) for name in names[:50]):
                return [_inside(root, name) or _refuse(root, name, where) for name in names]
    astray = next((name for name in manners[0] if not any(_inside(root, name) for root in roots)), None)
    if astray is not None:
        _refuse(roots[0], astray, where)
    looked = ", ".join(f"'{root}'" for root in roots)
    raise MultiflowError(
        f"none of the {len(manners[0])} images that {where} names were found, such as '{manners[0][0]}'; looked in "
        f"{looked}; give their folder with images=, --images"
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
        "(name another folder with images=, --images)"
    )


def open_image(data: bytes, key: str) -> Image.Image:
    """Open an image from the bytes of its file; pixels are decoded later."""
    try:
        return Image.open(io.BytesIO(data))
    except UNREADABLE as error:
        reason = "not an image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BrokenItem(key, reason) from error


def load_image(path: str, key: str) -> Image.Image:
    """Open an image file; pixels are decoded later, the file is closed at once."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BrokenItem(key, error.strerror or str(error)) from error
    return open_image(data, key)


def is_image(name: str) -> bool:
    """Whether a file name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[str]:
    """Return the names of the image files in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_image(entry.name) and entry.is_file())


def split_in_name(path: Path) -> str | None:
    """Return the split that a file name tells, such as ``val`` from ``coco_karpathy_val.json``.

    >>> split_in_name(Path("v2_OpenEnded_mscoco_train2014_questions.json"))
    'train'
    """
    match = SPLIT_IN_NAME.search(path.stem.lower())
    return {"validation": "val"}.get(match[0], match[0]) if match else None


class NoSuchSplit(MultiflowError):
    """The data lack the split that was asked for."""


def choose_split(given: str | None, held: Sequence[str], where: str) -> str:
    """Return the split to read, ``train`` by default; one that is not held is an error that lists those that are."""
    if given in held or (given is None and "train" in held):
        return given or "train"
    what = "no split was given, and there is no 'train'" if given is None else f"split '{given}' is unknown"
    guess = did_you_mean(given or "", held)
    raise NoSuchSplit(f"{what} in {where}; give split= (--split), one of {', '.join(held)}{guess}")
