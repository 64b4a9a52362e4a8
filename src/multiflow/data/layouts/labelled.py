"""Labelled images: a folder a class, CIFAR-10 and CIFAR-100 as they are released, Flowers-102.

CIFAR's files are pickles. They are read with an unpickler that knows arrays and plain values only: a file that names
anything else is refused, and nothing in it runs.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.base.files import files_in, read_regular
from multiflow.base.guards import raise_shortage
from multiflow.data.dataset import Dataset, Known, Pair
from multiflow.data.images import choose_split, data_of_files, image_files, is_image, refuse_split
from multiflow.data.layouts import LAYOUTS, DataLayout, Place
from multiflow.data.matlab import read_numbers

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a folder -> the split that it holds."""
ARRAYS = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
CIFAR_SIDE = 32
MOST_BYTES = 2**29
"""Bytes of a file of CIFAR or Flowers-102 at most."""


class Cifar(NamedTuple):
    """What the files of a version of CIFAR are called."""

    files: Mapping[str, Sequence[str]]
    labels: bytes
    meta: str
    names: bytes


CIFARS = (
    Cifar(
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        b"labels",
        "batches.meta",
        b"label_names",
    ),
    Cifar({"train": ["train"], "test": ["test"]}, b"fine_labels", "meta", b"fine_label_names"),
)
FLOWERS = {"train": "trnid", "val": "valid", "test": "tstid"}
FLOWER_CLASSES = 102
LABELS, PARTS = "imagelabels.mat", "setid.mat"
MOST_NUMBERS = 10**6  # of a matrix of Flowers-102


def _splits(folder: Path) -> dict[str, Path]:
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return {SPLITS[path.name.lower()]: path for path in inner if path.name.lower() in SPLITS}


def _classes(folder: Path) -> tuple[str, ...]:
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return tuple(path.name for path in inner if any(True for _ in files_in(path, is_image)))


def _is_classes(place: Place) -> bool:
    return place.is_folder and any(_classes(part) for part in (place.path, *_splits(place.path).values()))


def _open_classes(place: Place) -> Dataset[Pair]:
    folder, held = place.path, _splits(place.path)
    if not held:
        refuse_split(place.split, f"'{folder}' (no folder {', '.join(SPLITS)})")
        return _dataset("a folder a class", folder, folder, _classes(folder))
    chosen = held[choose_split(place.split, list(held), f"'{folder}'")]
    classes = _classes(held.get("train", chosen))
    for name in _classes(chosen):
        if name not in classes:
            raise MultiflowError(f"'{chosen}' has a class '{name}' that '{held['train']}' lacks; mend one of them")
    return _dataset("a folder a class", chosen, chosen, classes)


def _dataset(layout: str, source: Path, folder: Path, classes: Sequence[str]) -> Dataset[Pair]:
    here = [name for name in classes if (folder / name).is_dir()]
    found = [(folder / name / file, name) for name in here for file in image_files(folder / name)]
    if not found:
        raise MultiflowError(f"'{folder}' holds no labelled images; expected {LAYOUTS['classes'].form}")
    return _of_files(layout, source, found, classes)


def _of_files(layout: str, source: Path, found: Sequence[tuple[Path, str]], classes: Sequence[str]) -> Dataset[Pair]:
    texts = [(name,) for _, name in found]
    names = [f"{path.parent.name}/{path.name}" for path, _ in found]
    paths = [str(path) for path, _ in found]
    parts = [(of,) for of in texts]
    return data_of_files("pairs", layout, source, paths, names, _make_pair, parts, texts, classes=classes)


def _make_pair(image: Any, name: str, texts: tuple[str, ...]) -> Pair:
    return Pair(image, texts, name)


def _cifar_of(place: Place) -> Cifar | None:
    return next((cifar for cifar in CIFARS if (place.path / cifar.meta).is_file()), None)


def _open_cifar(place: Place) -> Dataset[Pair]:
    folder, cifar = place.path, _cifar_of(place)
    assert cifar is not None
    chosen = choose_split(place.split, list(cifar.files), f"'{folder}'")
    names = _field(_unpickle(folder / cifar.meta), cifar.names, folder / cifar.meta)
    if not isinstance(names, list) or not all(isinstance(name, bytes) and name.isascii() for name in names):
        raise MultiflowError(f"'{folder / cifar.meta}' names classes {names!r:.200}; fetch it again")
    classes = tuple(name.decode() for name in names)
    arrays, labels = [], []
    for file in cifar.files[chosen]:
        content = _unpickle(folder / file)
        pixels, some = (_field(content, key, folder / file) for key in (b"data", cifar.labels))
        width = 3 * CIFAR_SIDE**2
        if not isinstance(pixels, np.ndarray) or (pixels.dtype, *pixels.shape[1:]) != (np.uint8, width):
            raise MultiflowError(f"'{folder / file}' holds no images of {width} bytes each; fetch it again")
        fit = isinstance(some, list) and all(type(i) is int and 0 <= i < len(classes) for i in some)
        if not fit or len(some) != len(pixels):
            raise MultiflowError(f"the labels in '{folder / file}' do not fit its {len(pixels)} images; fetch it again")
        arrays.append(pixels.view("|u1").reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1))
        labels += some
    texts = [(classes[i],) for i in labels]
    read, known = partial(_read_array, np.concatenate(arrays), texts), partial(_known_class, texts)
    return Dataset("pairs", f"CIFAR, {chosen}", str(folder), len(texts), read, known=known, classes=classes)


def _read_array(images: np.ndarray, texts: Sequence[tuple[str, ...]], index: int) -> Pair:
    return Pair(np.ascontiguousarray(images[index]), texts[index], str(index))


def _known_class(texts: Sequence[tuple[str, ...]], index: int) -> Known:
    return Known(None, texts[index])


def _field(content: Any, key: bytes, path: Path) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise MultiflowError(f"'{path}' has no '{key.decode()}', which the Python version of CIFAR holds")
    return content[key]


class _Unpickler(pickle.Unpickler):
    """Builds arrays and plain values, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that arrays are made of."""
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return ARRAYS[module, name]


def _unpickle(path: Path) -> Any:
    try:
        return _Unpickler(io.BytesIO(read_regular(path, MOST_BYTES)), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise_shortage(error, path.stat().st_size)
        raise MultiflowError(
            f"'{path}' is not a file of CIFAR's Python version ({error}); fetch it again, or give a folder of images"
        ) from error


def _is_flowers(place: Place) -> bool:
    return (place.path / LABELS).is_file()


def _open_flowers(place: Place) -> Dataset[Pair]:
    folder = place.path
    chosen = choose_split(place.split, list(FLOWERS), f"'{folder}'")
    try:
        labels, numbers = (
            read_numbers(read_regular(folder / name, MOST_BYTES), key, MOST_NUMBERS)
            for name, key in ((LABELS, "labels"), (PARTS, FLOWERS[chosen]))
        )
        if not all(1 <= label <= FLOWER_CLASSES for label in labels) or not all(1 <= n <= len(labels) for n in numbers):
            raise ValueError("its numbers are out of range")
        found = [(folder / "jpg" / f"image_{n:05}.jpg", f"{labels[n - 1]:03}") for n in numbers]
    except (OSError, ValueError) as error:
        raise MultiflowError(f"'{folder}' lacks a whole {PARTS} or {LABELS} ({error}); fetch both") from error
    classes = tuple(f"{number:03}" for number in range(1, FLOWER_CLASSES + 1))
    return _of_files(f"Flowers-102, {chosen}", folder, found, classes)


LAYOUTS.add(
    "cifar",
    DataLayout(
        "the Python version of CIFAR-10 or CIFAR-100",
        lambda place: _cifar_of(place) is not None,
        _open_cifar,
        splits=True,
        labelled=True,
        order=1,
    ),
)
LAYOUTS.add(
    "flowers-102",
    DataLayout(
        "Flowers-102 (imagelabels.mat, setid.mat, jpg/)",
        _is_flowers,
        _open_flowers,
        splits=True,
        labelled=True,
        order=2,
    ),
)
LAYOUTS.add(
    "classes",
    DataLayout("SPLIT/CLASS/IMAGE or CLASS/IMAGE", _is_classes, _open_classes, splits=True, labelled=True, order=3),
)
