"""Images with described regions: Visual Genome's own files, and the plain region lists of X-VLM."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import Box, Dataset, Known, Region, RegionItem, Skip
from multiflow.data.files import field, image_files, load_image, locate, read_json, texts_of

Size = tuple[int, int]
Records = list[tuple[str, tuple[Region, ...], Size | None]]
"""(path of the image, its regions, width and height that their boxes refer to if not the file's), in file order."""

NO_FILE = "no such image file"
VG_FOLDERS = ("images", "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2", "")


def open_visual_genome(content: list[Any], path: Path, images: Path | None) -> Dataset[RegionItem]:
    """Read ``region_descriptions.json``: ``[{id, regions: [{x, y, width, height, phrase}]}]``.

    Images are ``ID.jpg`` (or another suffix) in the folders of the original release or in ``images``. Where
    ``image_data.json`` lies beside the file, boxes are scaled to images that were stored smaller than released.
    """
    files = _visual_genome_images(images or path.parent)
    sizes = _released_sizes(path.with_name("image_data.json"))
    records: Records = []
    skipped = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        listed = field(record, "regions", list, where)
        regions = []
        for j, region in enumerate(listed):
            part = f"region {j} of {where}"
            texts = texts_of(field(region, "phrase", str, part), part)
            box = [field(region, name, (int, float), part) for name in ("x", "y", "width", "height")]
            if texts:
                regions.append(Region(texts, _box(box, part)))
            else:
                skipped.append(Skip(f"{record.get('id', i)}, region {j}", "no caption"))
        image_id = str(record["id"] if "id" in record else field(listed[0], "image_id", int, where) if listed else i)
        if image_id not in files:
            skipped.append(Skip(image_id, NO_FILE))
        elif regions:
            records.append((files[image_id], tuple(regions), sizes.get(image_id)))
    lost = [skip.key for skip in skipped if skip.reason == NO_FILE]
    if not records and lost:
        raise MultiflowError(
            f"none of the {len(lost)} images of '{path}' were found, such as {lost[0]}.jpg; looked in "
            f"'{images or path.parent}' and its {', '.join(VG_FOLDERS[:3])}; give their folder with images=, --images"
        )
    return _dataset("Visual Genome regions", path, records, tuple(skipped))


def open_region_list(content: list[Any], path: Path, images: Path | None) -> Dataset[RegionItem]:
    """Read X-VLM's plain list ``[{image, caption?, elems: [{bb: [x, y, w, h], caption, attributes?}]}]``.

    A caption is a text or a list of texts; an attribute goes before the caption ("red" + "ball"). The caption of the
    entry describes the whole image.
    """
    records: Records = []
    skipped = []
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
            box = _box(field(element, "bb", list, part), part)
            if texts:
                regions.append(Region(texts, box))
            else:
                skipped.append(Skip(f"{name}, element {j}", "no caption"))
        if regions:
            records.append((name, tuple(regions), None))
    if records:
        paths = locate([[name for name, _, _ in records]], path.parent, images, f"'{path}'")
        records = [(place, listed, None) for place, (_, listed, _) in zip(paths, records, strict=True)]
    return _dataset("X-VLM region list", path, records, tuple(skipped))


def _dataset(layout: str, path: Path, records: Records, skipped: tuple[Skip, ...]) -> Dataset[RegionItem]:
    if not records:
        raise MultiflowError(f"captions are missing: no image in '{path}' has a region with a caption")
    counts = np.array([len(regions) for _, regions, _ in records], np.int64)
    read, known = partial(_read, records), partial(_known, records)
    return Dataset("regions", layout, str(path), len(records), read, counts, known, skipped)


def _read(records: Records, index: int) -> RegionItem:
    path, regions, size = records[index]
    key = os.path.basename(path)
    image = load_image(path, key)
    if size is not None and size != image.size:
        x, y = image.width / size[0], image.height / size[1]
        regions = tuple(Region(texts, _scaled(box, x, y)) for texts, box in regions)
    return RegionItem(image, regions, key)


def _known(records: Records, index: int) -> Known:
    return Known(records[index][0], ())


def _scaled(box: Box | None, x: float, y: float) -> Box | None:
    return None if box is None else (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _released_sizes(path: Path) -> dict[str, Size]:
    """Return image id -> (width, height) from ``image_data.json``; nothing where there is no such file."""
    sizes = {}
    for i, record in enumerate(read_json(path) if path.is_file() else []):
        width, height = (field(record, name, int, f"entry {i} of '{path}'") for name in ("width", "height"))
        if width > 0 and height > 0:  # the first release calls the number of an image "id"
            sizes[str(record.get("image_id", record.get("id")))] = (width, height)
    return sizes


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
