"""Data sets whose images are files: names of images to paths inside their folder, splits, texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.reading import exists
from multiflow.data.dataset import Dataset, Item, Kind, Known, Pair, Skip
from multiflow.data.images import load_image

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
) -> Dataset[Item]:
    """Make a data set whose images are files.

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
    """
    read = partial(_read, paths, names, make, parts)
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
    paths: Sequence[str], names: Sequence[str], make: Callable[..., Item], parts: Sequence[tuple[Any, ...]], index: int
) -> Item:
    return make(load_image(paths[index], names[index]), names[index], *parts[index])


def _known(paths: Sequence[str], texts: Sequence[tuple[str, ...]], index: int) -> Known:
    return Known(paths[index], texts[index])


def texts_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of a string or several, stripped; blank ones are left out.

    >>> texts_of(["a dog ", " "])
    ('a dog',)
    """
    values = [value] if isinstance(value, str) else value or ()
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
        raise MultiflowError(f"the image folder '{images}' does not exist; give it with {{images=DIR}}", field="images")
    roots = [images] if images is not None else [folder, folder / "images", folder.parent, folder.parent / "images"]
    for names in manners:
        for root in roots:
            if any((path := _inside(root, name)) and exists(path) for name in names[:50]):
                return [_inside(root, name) or _refuse(root, name, where) for name in names]
    astray = next((name for name in manners[0] if not any(_inside(root, name) for root in roots)), None)
    if astray is not None:
        _refuse(roots[0], astray, where)
    looked = ", ".join(f"'{root}'" for root in roots)
    raise MultiflowError(
        f"none of the {len(manners[0])} images that {where} names were found, such as '{manners[0][0]}'; looked in "
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
