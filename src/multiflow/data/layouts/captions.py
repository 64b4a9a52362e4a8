"""Image-caption pairs in Karpathy's JSON, plain JSON lists, and image folders with captions beside the images."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import Dataset, Known, Pair, Skip
from multiflow.data.files import choose_split, field, image_files, load_image, locate, texts_of

Captions = list[tuple[str, tuple[str, ...]]]
"""(image name, its captions), in file order."""


def open_karpathy(content: dict[str, Any], path: Path, images: Path | None, split: str | None) -> Dataset[Pair]:
    """Read ``dataset_coco.json`` and its like: ``{"images": [{filepath?, filename, split, sentences: [{raw}]}]}``.

    Args:
        content: the parsed file.
        path: where it lies.
        images: folder of the images, or None to look around the file.
        split: ``train`` (with ``restval``, as in all published work), ``val``, ``test`` or ``all``; None = train.
    """
    listed = field(content, "images", list, f"'{path}'")
    held = list(dict.fromkeys(field(r, "split", str, f"image {i} of '{path}'") for i, r in enumerate(listed)))
    split = choose_split(split, [*held, "all"], f"'{path}'")
    wanted = {"train", "restval"} if split == "train" else set(held) if split == "all" else {split}
    records: Captions = []
    in_folders = []
    for i, record in enumerate(listed):
        if record["split"] in wanted:
            where = f"image {i} of '{path}'"
            raw = [field(s, "raw", str, f"a sentence of {where}") for s in field(record, "sentences", list, where)]
            name = field(record, "filename", str, where)
            records.append((name, texts_of(raw, where)))
            in_folders.append(os.path.join(record.get("filepath", ""), name))
    return _from_records("Karpathy JSON", path, images, records, manners=(in_folders,))


def open_list(content: list[Any], path: Path, images: Path | None) -> Dataset[Pair]:
    """Read a plain list ``[{image, caption, image_id?}]``; the caption is a text or a list of texts."""
    records: Captions = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        name = field(record, "image", str, where)
        records.append((name, texts_of(field(record, "caption", (str, list), where), where)))
    return _from_records("plain JSON list", path, images, records)


def open_mapping(content: dict[str, Any], path: Path, images: Path | None) -> Dataset[Pair]:
    """Read ``captions.json`` of an image folder: ``{image name: caption or list of captions}``."""
    records = [(name, texts_of(value, f"'{name}' in '{path}'")) for name, value in content.items()]
    return _from_records("image folder with captions.json", path, images, records)


def open_captions_txt(path: Path, images: Path | None) -> Dataset[Pair]:
    """Read ``captions.txt``: ``image<TAB>caption`` or ``image,caption`` a line; ``#0`` after a name is left out."""
    captions: dict[str, list[str]] = {}
    for number, (name, text) in enumerate(_rows(path), 1):
        if number == 1 and (name.lower(), text.lower()) == ("image", "caption"):
            continue
        if not text:
            raise MultiflowError(f"line {number} of '{path}' has no caption; expected image<TAB>caption on every line")
        captions.setdefault(name.partition("#")[0], []).append(text)
    records = [(name, tuple(texts)) for name, texts in captions.items()]
    return _from_records("image folder with captions.txt", path, images, records)


def open_text_beside(folder: Path) -> Dataset[Pair]:
    """Read a folder of ``NAME.jpg`` with ``NAME.txt`` beside it, a caption on every line."""
    records: Captions = []
    skipped = []
    for name in image_files(folder):
        beside = folder / (os.path.splitext(name)[0] + ".txt")
        try:
            text = beside.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            skipped.append(Skip(name, f"no readable caption file {beside.name}"))
            continue
        records.append((name, texts_of(text.split("\n"), str(beside))))
    return _from_records("image folder with a text beside each image", folder, folder, records, tuple(skipped))


def _rows(path: Path) -> Iterable[tuple[str, str]]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MultiflowError(f"cannot read '{path}' as UTF-8 text: {error}") from error
    if lines and all("\t" in line for line in lines):
        return [(name.strip(), text.strip()) for name, _, text in (line.partition("\t") for line in lines)]
    return [(row[0].strip(), ",".join(row[1:]).strip()) for row in csv.reader(lines)]


def _from_records(
    layout: str,
    path: Path,
    images: Path | None,
    records: Captions,
    skipped: tuple[Skip, ...] = (),
    manners: tuple[list[str], ...] = (),
) -> Dataset[Pair]:
    """Make the data set of (image name, captions); entries without a caption are noted as skipped.

    `manners` are other ways to name the same images, tried before the names of the records.
    """
    good = [i for i, (_, texts) in enumerate(records) if texts]
    if not good:
        raise MultiflowError(
            f"captions are missing: none of the {len(records) + len(skipped)} images in '{path}' has a caption; "
            "every image needs at least one"
        )
    skipped += tuple(Skip(name, "no caption") for name, texts in records if not texts)
    named = [[names[i] for i in good] for names in (*manners, [name for name, _ in records])]
    paths = locate(named, path if path.is_dir() else path.parent, images, f"'{path}'")
    items = [(path, *records[i]) for path, i in zip(paths, good, strict=True)]
    read, known = partial(_read, items), partial(_known, items)
    return Dataset("pairs", layout, str(path), len(items), read, known=known, skipped=skipped)


def _read(items: list[tuple[str, str, tuple[str, ...]]], index: int) -> Pair:
    path, name, captions = items[index]
    return Pair(load_image(path, name), captions, name)


def _known(items: list[tuple[str, str, tuple[str, ...]]], index: int) -> Known:
    path, _, captions = items[index]
    return Known(path, captions)
