"""Images with described regions: Visual Genome's own files, and the plain region lists of X-VLM."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multiflow.data.base import Box, Dataset, Region, RegionItem, Skip
from multiflow.data.files import field, image_files, load_image, locate, texts_of
from multiflow.errors import MultiflowError

Records = list[tuple[str, tuple[Region, ...]]]
"""(path of the image, its regions), in file order."""

VG_FOLDERS = ("images", "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2", "")


def open_visual_genome(content: list[Any], path: Path, images: Path | None) -> Dataset[RegionItem]:
    """Read ``region_descriptions.json``: ``[{id, regions: [{x, y, width, height, phrase}]}]``.

    Images are ``ID.jpg`` (or another suffix) in the folders of the original release or in ``images``.
    """
    files = _visual_genome_images(images or path.parent)
    records: Records = []
    skipped = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        listed = field(record, "regions", list, where)
        regions = []
        for j, region in enumerate(listed):
            part = f"region {j} of {where}"
            texts = texts_of(field(region, "phrase", str, part), part)
            if texts:
                box = [field(region, name, (int, float), part) for name in ("x", "y", "width", "height")]
                regions.append(Region(texts, _box(box, part)))
        image_id = str(record["id"] if "id" in record else field(listed[0], "image_id", int, where) if listed else i)
        if image_id not in files:
            skipped.append(Skip(image_id, "no such image file"))
        elif regions:
            records.append((files[image_id], tuple(regions)))
    if not records and skipped:
        raise MultiflowError(
            f"none of the {len(skipped)} images of '{path}' were found, such as {skipped[0].key}.jpg; looked in "
            f"'{images or path.parent}' and its {', '.join(VG_FOLDERS[:3])}; give their folder with images=, --images"
        )
    return _dataset("Visual Genome regions", path, records, tuple(skipped))


def open_region_list(content: list[Any], path: Path, images: Path | None) -> Dataset[RegionItem]:
    """Read X-VLM's plain list ``[{image, caption?, elems: [{bb: [x, y, w, h], caption, attributes?}]}]``.

    A caption is a text or a list of texts; an attribute goes before the caption ("red" + "ball"). The caption of the
    entry describes the whole image.
    """
    records: Records = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        name = field(record, "image", str, where)
        whole = texts_of(record["caption"], where) if record.get("caption") else ()
        regions = [Region(whole, None)] if whole else []
        for j, element in enumerate(field(record, "elems", list, where)):
            part = f"element {j} of {where}"
            texts = texts_of(field(element, "caption", (str, list), part), part)
            attributes = texts_of(element["attributes"], part) if element.get("attributes") else ()
            if attributes:
                texts = tuple(f"{attribute} {text}" for attribute in attributes for text in texts)
            if texts:
                regions.append(Region(texts, _box(field(element, "bb", list, part), part)))
        if regions:
            records.append((name, tuple(regions)))
    if records:
        paths = locate([[name for name, _ in records]], path.parent, images, f"'{path}'")
        records = [(place, regions) for place, (_, regions) in zip(paths, records, strict=True)]
    return _dataset("X-VLM region list", path, records, ())


def _dataset(layout: str, path: Path, records: Records, skipped: tuple[Skip, ...]) -> Dataset[RegionItem]:
    if not records:
        raise MultiflowError(f"captions are missing: no image in '{path}' has a region with a caption")
    counts = np.array([len(regions) for _, regions in records], np.int64)
    return Dataset("regions", layout, str(path), len(records), partial(_read, records), counts, skipped)


def _read(records: Records, index: int) -> RegionItem:
    path, regions = records[index]
    key = os.path.basename(path)
    return RegionItem(load_image(path, key), regions, key)


def _box(values: list[Any], where: str) -> Box:
    """Return (x, y, width, height); one without an area is left to `Batches`, which names it and goes on."""
    if len(values) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in values):
        raise MultiflowError(f"{where} has the box {values}; expected four numbers: x, y, width and height in pixels")
    return (float(values[0]), float(values[1]), float(values[2]), float(values[3]))


def _visual_genome_images(root: Path) -> dict[str, str]:
    """Return image id -> path for every image under the folders that Visual Genome uses."""
    found: dict[str, str] = {}
    for folder in (root / name for name in VG_FOLDERS):
        if folder.is_dir():
            for name in image_files(folder):
                found.setdefault(os.path.splitext(name)[0], str(folder / name))
    return found
