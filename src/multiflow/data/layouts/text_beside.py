"""A folder of images with a text file of the same name beside each: ``NAME.jpg`` and ``NAME.txt``."""

from __future__ import annotations

import os

from multiflow.base.errors import MultiflowError
from multiflow.base.files import MOST_TEXT, read_text
from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.images import image_files, pairs_of_files, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place


def _recognise(place: Place) -> bool:
    return place.is_folder and any((place.path / _beside(name)).is_file() for name in image_files(place.path)[:100])


def _read(place: Place) -> Dataset[Pair]:
    records = []
    skipped = []
    for name in image_files(place.path):
        try:
            text = read_text(place.path / _beside(name), "captions", MOST_TEXT)
        except MultiflowError:
            skipped.append(Skip(name, f"no readable caption file {_beside(name)}"))
            continue
        records.append((name, texts_of(text.split("\n"))))
    return pairs_of_files(
        "image folder with a text beside each image", place.path, place.path, records, skipped=skipped
    )


def _beside(name: str) -> str:
    return os.path.splitext(name)[0] + ".txt"


LAYOUTS.add(
    "text-beside", DataLayout("NAME.txt, a caption on every line, beside each NAME.jpg", _recognise, _read, order=12)
)
