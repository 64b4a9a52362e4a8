"""Labelled images: a folder a class, CIFAR-10 and CIFAR-100 as they are released, Flowers-102.

CIFAR's files are pickles. They are read with an unpickler that knows arrays and plain values only: a file that names
anything else is refused, and nothing in it runs.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data import Pair
from multiflow.data.dataset import Known
from multiflow.data.files import NoSuchSplit, choose_split, image_files, load_image
from multiflow.data.items import WHOLE, TaskData

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a folder -> the split that it holds."""
LAYOUT = "SPLIT/CLASS/IMAGE, CLASS/IMAGE, the Python version of CIFAR-10 or CIFAR-100, or Flowers-102"
ARRAYS = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
CIFAR_SIDE = 32


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


def open_labelled(source: str | Path, split: str | None) -> TaskData:
    """Open a split of labelled images; the texts are the class of each, the choices all classes.

    Args:
        source: a folder in one of the layouts.
        split: ``train``, ``val`` or ``test``; ``all`` or None takes images without splits whole.

    Raises:
        MultiflowError: another layout, another split, or a file that is damaged or no data.

    >>> open_labelled("cifar-10-batches-py", "test").choices[:2]  # doctest: +SKIP
    ('airplane', 'automobile')
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise MultiflowError(f"there is no folder '{source}'; give labelled images as {LAYOUT}")
    for cifar in CIFARS:
        if (folder / cifar.meta).is_file():
            return _open_cifar(folder, split, cifar)
    if (folder / LABELS).is_file():
        return _open_flowers(folder, split)
    return _open_folders(folder, split)


def is_labelled(source: str | Path) -> bool:
    """Whether a folder is in one of the layouts of labelled images, as far as its names tell."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return False
    known = (*(cifar.meta for cifar in CIFARS), LABELS)
    return any((folder / name).is_file() for name in known) or any(
        _classes(part) for part in (folder, *(_splits(folder).values()))
    )


def _splits(folder: Path) -> dict[str, Path]:
    """Return the folders that hold splits."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return {SPLITS[path.name.lower()]: path for path in inner if path.name.lower() in SPLITS}


def _open_folders(folder: Path, split: str | None) -> TaskData:
    held = _splits(folder)
    if not held:
        if split not in (None, WHOLE):
            raise NoSuchSplit(
                f"split '{split}' was given, and '{folder}' has none (no folder {', '.join(SPLITS)}); "
                f"take it whole with split '{WHOLE}' (--split {WHOLE})"
            )
        return _labelled(str(folder), _classes(folder), folder)
    chosen = held[choose_split(split, list(held), f"'{folder}'")]
    classes = _classes(held.get("train", chosen))
    for name in _classes(chosen):
        if name not in classes:
            raise MultiflowError(f"'{chosen}' has a class '{name}' that '{held['train']}' lacks; mend one of them")
    return _labelled(str(chosen), classes, chosen)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in sorted(folder.iterdir()) if path.is_dir() and image_files(path))


def _labelled(source: str, classes: tuple[str, ...], folder: Path) -> TaskData:
    found = [(folder / c / name, c) for c in classes if (folder / c).is_dir() for name in image_files(folder / c)]
    if not found:
        raise MultiflowError(f"'{source}' holds no labelled images; expected {LAYOUT}")
    return _data(f"{source} (a folder a class)", found, classes)


def _data(source: str, found: Sequence[tuple[Path, str]], classes: tuple[str, ...]) -> TaskData:
    texts = tuple((name,) for _, name in found)
    read, known = partial(_read_file, tuple(found)), partial(_known, tuple(found))
    return TaskData(source, range(len(found)), read, texts, classes, known=known)


def _read_file(found: Sequence[tuple[Path, str]], index: int) -> Pair:
    path, name = found[index]
    key = f"{path.parent.name}/{path.name}"
    return Pair(load_image(str(path), key), (name,), key)


def _known(found: Sequence[tuple[Path, str]], index: int) -> Known:
    path, name = found[index]
    return Known(str(path), (name,))


def _open_cifar(folder: Path, split: str | None, cifar: Cifar) -> TaskData:
    chosen = choose_split(split, list(cifar.files), f"'{folder}'")
    names = _field(_unpickle(folder / cifar.meta), cifar.names, folder / cifar.meta)
    if not all(isinstance(name, bytes) for name in names):
        raise MultiflowError(f"'{folder / cifar.meta}' names classes {names!r}; fetch it again")
    classes = tuple(name.decode() for name in names)
    arrays, labels = [], []
    for file in cifar.files[chosen]:
        content = _unpickle(folder / file)
        pixels, some = (_field(content, key, folder / file) for key in (b"data", cifar.labels))
        width = 3 * CIFAR_SIDE**2
        if not isinstance(pixels, np.ndarray) or (pixels.dtype, *pixels.shape[1:]) != (np.uint8, width):
            raise MultiflowError(f"'{folder / file}' holds no images of {width} bytes each; fetch it again")
        if len(some) != len(pixels) or not all(isinstance(i, int) and 0 <= i < len(classes) for i in some):
            raise MultiflowError(f"the labels in '{folder / file}' do not fit its {len(pixels)} images; fetch it again")
        arrays.append(pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1))
        labels += some
    texts = tuple((classes[i],) for i in labels)
    read = partial(_read_array, np.concatenate(arrays), texts)
    return TaskData(f"{folder} (CIFAR, {chosen})", range(len(texts)), read, texts, classes)


def _read_array(images: np.ndarray, texts: Sequence[tuple[str, ...]], index: int) -> Pair:
    return Pair(np.ascontiguousarray(images[index]), texts[index], str(index))


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
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise MultiflowError(
            f"'{path}' is not a file of CIFAR's Python version ({error}); fetch it again, or give a folder of images"
        ) from error


def _open_flowers(folder: Path, split: str | None) -> TaskData:
    chosen = choose_split(split, list(FLOWERS), f"'{folder}'")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MultiflowError(
            f"'{folder / 'imagelabels.mat'}' needs scipy, which is not installed; run: pip install scipy"
        ) from error
    try:
        with (folder / LABELS).open("rb") as file:
            labels = loadmat(file)["labels"].ravel()
        with (folder / PARTS).open("rb") as file:
            numbers = loadmat(file)[FLOWERS[chosen]].ravel()
        found = [(folder / "jpg" / f"image_{n:05}.jpg", f"{labels[n - 1]:03}") for n in numbers.tolist()]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise MultiflowError(f"'{folder}' lacks a whole {PARTS} or {LABELS} ({error}); fetch both") from error
    classes = tuple(f"{number:03}" for number in range(1, FLOWER_CLASSES + 1))
    return _data(f"{folder} (Flowers-102, {chosen})", found, classes)
