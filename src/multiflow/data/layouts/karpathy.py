"""Karpathy's splits of COCO, Flickr8k and Flickr30k: ``dataset_coco.json``."""

from __future__ import annotations

import os

from msgspec import Struct

from multiflow.data.dataset import Dataset, Pair
from multiflow.data.images import choose_split, pairs_of_files, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place


class Sentence(Struct):
    """A caption."""

    raw: str


class Image(Struct):
    """An image with its captions."""

    filename: str
    split: str
    sentences: list[Sentence]
    filepath: str = ""


class File(Struct):
    """The whole file."""

    images: list[Image]


def _recognise(place: Place) -> bool:
    match place.content:
        case {"images": [{"sentences": _}, *_]}:
            return True
    return place.content is not None and place.path.name.startswith("dataset_")  # which says what it lacks


def _read(place: Place) -> Dataset[Pair]:
    listed = place.as_(File).images
    held = list(dict.fromkeys(image.split for image in listed))
    split = choose_split(place.split, [*held, "all"], f"'{place.path}'")
    wanted = {"train", "restval"} if split == "train" else set(held) if split == "all" else {split}
    chosen = [image for image in listed if image.split in wanted]
    records = [(image.filename, texts_of([sentence.raw for sentence in image.sentences])) for image in chosen]
    in_folders = [os.path.join(image.filepath, image.filename) for image in chosen]
    return pairs_of_files("Karpathy JSON", place.path, place.images, records, other_names=[in_folders])


LAYOUTS.add(
    "karpathy",
    DataLayout(
        "dataset_*.json (Karpathy splits of COCO or Flickr30k)",
        _recognise,
        _read,
        ["dataset_*.json"],
        splits=True,
        order=8,
    ),
)
