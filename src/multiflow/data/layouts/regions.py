"""Images with described regions: Visual Genome's own files, and the lists of X-VLM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json
from multiflow.data.dataset import Box, BrokenItem, Dataset, Region, RegionItem, Skip
from multiflow.data.images import data_of_files, image_files, is_turned, locate, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, list_of

Pixels = Annotated[float, Meta(ge=-1e9, le=1e9)]
Size = tuple[int, int]
Texts = str | list[str] | None
NO_FILE = "no such image file"
SIZES = "image_data.json"
FOLDERS = ("images", "VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2", "")


class Described(Struct):
    """A region of Visual Genome."""

    x: Pixels
    y: Pixels
    width: Pixels
    height: Pixels
    phrase: str
    image_id: int | str | None = None


class Genome(Struct):
    """An image of Visual Genome with its regions."""

    regions: list[Described]
    id: int | str | None = None


class Released(Struct):
    """The size that an image of Visual Genome was released with; the first release calls its number ``id``."""

    width: Annotated[int, Meta(le=10**9)]
    height: Annotated[int, Meta(le=10**9)]
    image_id: int | str | None = None
    id: int | str | None = None


class Element(Struct):
    """A region of X-VLM's list; an attribute goes before the caption ("red" + "ball")."""

    bb: tuple[Pixels, Pixels, Pixels, Pixels]
    caption: Texts
    attributes: Texts = None


class ListedImage(Struct):
    """An image of X-VLM's list; its caption describes the whole image."""

    image: str
    elems: list[Element]
    caption: Texts = None


def _read_genome(place: Place) -> Dataset[RegionItem]:
    """Read ``region_descriptions.json``; boxes are scaled to images that were stored smaller than released."""
    root = place.images or place.path.parent
    files, sizes = _images_by_id(root), _released_sizes(place)
    paths, parts, skipped, lost = [], [], [], []
    for number, image in enumerate(place.as_(list[Genome])):
        first = image.regions[0].image_id if image.regions else None
        identity = str(next((known for known in (image.id, first) if known is not None), number))
        regions = []
        for j, region in enumerate(image.regions):
            if texts := texts_of(region.phrase):
                regions.append(Region(texts, (region.x, region.y, region.width, region.height)))
            else:
                skipped.append(Skip(f"{identity}, region {j}", "no caption"))
        if identity not in files:
            lost.append(identity)
            skipped.append(Skip(identity, NO_FILE))
        elif regions:
            paths.append(files[identity])
            parts.append((tuple(regions), sizes.get(identity)))
    if not paths and lost:
        raise MultiflowError(
            f"none of the {len(lost)} images of '{place.path}' were found, such as {lost[0]}.jpg; looked in '{root}' "
            f"and its {', '.join(FOLDERS[:3])}; give their folder with {{images=DIR}}",
            field="images",
        )
    return _dataset("Visual Genome regions", place.path, paths, parts, skipped)


def _read_list(place: Place) -> Dataset[RegionItem]:
    """Read X-VLM's list ``[{image, caption?, elems: [{bb, caption, attributes?}]}]``."""
    names, parts, skipped = [], [], []
    for image in place.as_(list[ListedImage]):
        whole = texts_of(image.caption)
        regions = [Region(whole, None)] if whole else []
        for j, element in enumerate(image.elems):
            texts, attributes = texts_of(element.caption), texts_of(element.attributes)
            if attributes:
                texts = tuple(f"{attribute} {text}" for attribute in attributes for text in texts)
            if texts:
                regions.append(Region(texts, element.bb))
            else:
                skipped.append(Skip(f"{image.image}, element {j}", "no caption"))
        if regions:
            names.append(image.image)
            parts.append((tuple(regions), None))
    paths = locate([names], place.path.parent, place.images, f"'{place.path}'") if names else []
    return _dataset("X-VLM region list", place.path, paths, parts, skipped)


def _dataset(
    layout: str,
    path: Path,
    paths: Sequence[str],
    parts: Sequence[tuple[tuple[Region, ...], Size | None]],
    skipped: Sequence[Skip],
) -> Dataset[RegionItem]:
    if not paths:
        raise MultiflowError(f"captions are missing: no image in '{path}' has a region with a caption")
    names, counts = list(map(os.path.basename, paths)), np.array([len(regions) for regions, _ in parts], np.int64)
    texts = [()] * len(paths)
    return data_of_files(
        "regions", layout, path, paths, names, _make_item, parts, texts, counts=counts, skipped=skipped
    )


def _make_item(image: Image.Image, name: str, regions: tuple[Region, ...], size: Size | None) -> RegionItem:
    """Make an item; `size` is the width and height that its boxes refer to, if not those of the file."""
    if is_turned(image):
        raise BrokenItem(name, "EXIF turns it, and its boxes may be those of before or after; save it upright")
    if size is not None and size != image.size:
        x, y = image.width / size[0], image.height / size[1]
        regions = tuple(Region(texts, _scaled(box, x, y)) for texts, box in regions)
    return RegionItem(image, regions, name)


def _scaled(box: Box | None, x: float, y: float) -> Box | None:
    return None if box is None else (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _released_sizes(place: Place) -> dict[str, Size]:
    """Return image id -> (width, height) from the file beside; nothing where there is no such file."""
    path = place.path.with_name(SIZES)
    listed = place.as_(list[Released], read_json(path), path) if path.is_file() else []
    return {
        str(of.id if of.image_id is None else of.image_id): (of.width, of.height)
        for of in listed
        if of.width > 0 and of.height > 0
    }


def _images_by_id(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in (root / name for name in FOLDERS):
        if folder.is_dir():
            for name in image_files(folder):
                found.setdefault(os.path.splitext(name)[0], str(folder / name))
    return found


LAYOUTS.add(
    "visual-genome",
    DataLayout(
        "region_descriptions.json (Visual Genome)",
        list_of("regions"),
        _read_genome,
        ["region_descriptions.json"],
        [SIZES],
        order=4,
    ),
)
LAYOUTS.add(
    "region-list",
    DataLayout("a JSON list of {image, elems: [{bb, caption}]} (regions of X-VLM)", list_of("elems"), _read_list),
)
