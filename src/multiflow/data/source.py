"""One entry point for data on disk: the layouts of `multiflow.data.layouts` are asked what a file or folder holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any, cast

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.files import exists
from multiflow.data.dataset import AnyData, Dataset, Mixed, Pair, RegionItem, join
from multiflow.data.images import (
    NoSuchSplit,
    WrongLayout,
    choose_split,
    data_of_files,
    image_files,
    refuse_split,
    split_in_name,
)
from multiflow.data.layouts import LAYOUTS, DataLayout, Place

DEPTH = 2
"""Folders inside folders that are searched."""

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""Names of folders that are splits, where all folders that lie side by side have such a name."""


def open_data(
    source: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
) -> AnyData:
    """Open a data set on disk, or several joined by ``+``.

    Args:
        source: a file or folder in one of the `LAYOUTS`, or ``hf:`` and a Hugging Face data set: its name on the Hub or
            its folder, with ``,image=COLUMN,text=COLUMN,config=NAME,split=NAME`` where these are not plain from the
            data. ``A+B`` joins: pairs follow pairs, pairs and regions come side by side.
        images: folder that the image names of a file are relative to; default: looked for around the file. For
            ``A+B``, one folder for all, or as many, also joined by ``+``.
        split: ``train``, ``val`` or ``test``, for data that have splits; default ``train``; ``train+val`` takes both,
            and ``all`` takes data without splits whole. In a folder of several sources, those that lack the split are
            left out.
        image_column: column or key that holds the images, where its name does not tell.
        text_column: column or key that holds the texts, where its name does not tell.

    Returns:
        `Dataset` of pairs, regions or questions, or `Mixed` for general pairs and regions together.

    Errors: MultiflowError when nothing is found, captions are missing, a file cannot be read, an image path leads out
    of its folder, the split is unknown, or the columns are not plain.

    >>> data = open_data("coco/dataset_coco.json", split="test")   # doctest: +SKIP
    >>> data[0].captions[0]                                         # doctest: +SKIP
    'a man riding a wave on a surfboard'
    """
    columns: dict[str, Any] = {"image_column": image_column, "text_column": text_column}
    parts = _parts(str(source))
    if len(parts) > 1:
        return join([open_data(part, images=of, split=split, **columns) for part, of in _with_images(parts, images)])
    if split is not None and "+" in split:
        return join([open_data(source, images=images, split=part, **columns) for part in split.split("+")])
    path = Path(source).expanduser()
    place = Place(path, None if images is None else Path(images).expanduser(), split, **columns)
    for layout in LAYOUTS.values():
        if layout.prefix is not None and str(source).startswith(layout.prefix):
            return layout.read(replace(place, source=str(source)))
    _refuse_missing(source, path)
    with _naming(source):
        data = _open(place, DEPTH)
    if data is not None:
        return data
    if place.is_folder and image_files(path):
        raise MultiflowError(
            f"captions are missing: '{source}' holds images but neither captions.json, captions.txt nor NAME.txt "
            "beside each image; write one of them"
        )
    raise WrongLayout(
        f"no data found in '{source}'{_held(place)}; give for example a table (.csv, .tsv) or a JSON list of images "
        "and captions, or images with NAME.txt beside each; 'multiflow show layouts' lists all layouts, from shards of "
        "img2dataset to VQA v2"
    )


def open_labelled(source: str | Path, split: str | None) -> Dataset[Pair]:
    """Open a split of labelled images: the caption of each is its class, and `Dataset.classes` are all of them.

    Args:
        source: a folder in one of the layouts of labelled images.
        split: ``train``, ``val`` or ``test``; ``all`` or None takes images without splits whole.

    Raises:
        MultiflowError: another layout, another split, or a file that is damaged or no data.

    >>> open_labelled("cifar-10-batches-py", "test").classes[:2]  # doctest: +SKIP
    ('airplane', 'automobile')
    """
    place = Place(Path(source).expanduser(), split=split)
    forms = ", ".join(layout.form for layout in LAYOUTS.values() if layout.labelled)
    if not place.is_folder:
        raise MultiflowError(f"there is no folder '{source}'; give labelled images as {forms}")
    with _naming(source):
        layout = _recognised(place, labelled=True)
        if layout is None:
            raise MultiflowError(f"'{source}' holds no labelled images; expected {forms}")
        return cast("Dataset[Pair]", layout.read(place))


def is_labelled(source: str | Path) -> bool:
    """Whether a folder is in one of the layouts of labelled images, as far as its names tell."""
    place = Place(Path(source).expanduser())
    return place.is_folder and _recognised(place, labelled=True) is not None


def open_images(
    source: str, images: str | None = None, split: str | None = None
) -> tuple[Dataset[Any], tuple[str, ...]]:
    """Open images, and the names of their classes if they are labelled.

    Args:
        source: a folder of images, labelled images as of `open_labelled`, or a source of pairs or regions.
        images: folder of the images of a source of pairs.
        split: of a source that has splits; None = train.
    """
    try:
        data = open_data(source, images=images, split=split)
    except NoSuchSplit:
        raise
    except MultiflowError:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise
        names = image_files(folder)
        if not names and not is_labelled(folder):
            raise
        if not names:
            labelled = open_labelled(source, split)
            return replace(labelled, layout=f"images of {len(labelled.classes)} classes"), labelled.classes
        refuse_split(split, f"'{source}', a folder of images,")
        paths, texts = [str(folder / name) for name in names], [("",)] * len(names)
        return data_of_files("pairs", "image folder", folder, paths, names, _bare_pair, [()] * len(names), texts), ()
    if isinstance(data, Dataset) and data.kind == "clips":
        raise MultiflowError(f"{data} was given, and images are wanted; give a folder of images or pairs")
    return data.pairs if isinstance(data, Mixed) else data, ()


def label_classes(classes: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    """Give each class its label: the model's if it knows all the names, else their order."""
    if all(name in known for name in classes):
        return {name: known[name] for name in classes}
    return {name: number for number, name in enumerate(classes)}


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    """Let errors of the file system, such as a folder that may not be read, name the source."""
    try:
        yield
    except OSError as error:
        raise MultiflowError(f"cannot read '{source}': {error}; check the path and its permissions") from error


def _bare_pair(image: Any, name: str) -> Pair:
    return Pair(image, ("",), name)


def _refuse_missing(source: str | Path, path: Path) -> None:
    if not exists(path):
        near = [entry.name for entry in path.parent.iterdir()] if exists(path.parent) and path.parent.is_dir() else []
        near_by = did_you_mean(path.name, near)
        raise MultiflowError(f"no data at '{source}': no such file or folder{near_by}; check the path")


def _held(place: Place) -> str:
    """Say what the first JSON file at a place holds, in which no layout was recognised."""
    file = place if not place.is_folder else next((_at(place, p) for p in _json_files(place.path)), None)
    if file is None or file.content is None:
        return ""
    content = file.content
    first = content[0] if isinstance(content, list) and content else content
    held = (
        f"{{{', '.join(f'{key:.40}' for key in islice(map(str, first), 8))}}}"
        if isinstance(first, dict)
        else type(first).__name__
    )
    return f" ('{file.path.name}' holds {'a list of ' if isinstance(content, list) and content else ''}{held})"


def _parts(source: str) -> list[str]:
    """Split ``A+B``, unless it is the path of something."""
    parts = [source] if exists(Path(source).expanduser()) else source.split("+")
    if "" in parts:
        raise MultiflowError(f"'{source}' names nothing on one side of a '+'; expected A+B")
    return parts


def _with_images(parts: list[str], images: str | Path | None) -> list[tuple[str, str | None]]:
    folders: Sequence[str | None] = [None] if images is None else _parts(str(images))
    if len(folders) not in (1, len(parts)):
        raise MultiflowError(
            f"{len(folders)} image folders were given for {len(parts)} sources; give one for all, or one for each"
        )
    return list(zip(parts, list(folders) * (len(parts) // len(folders)), strict=True))


def _recognised(place: Place, *, late: bool | None = None, labelled: bool = False) -> DataLayout | None:
    asked = [of for of in LAYOUTS.values() if of.labelled == labelled and late in (None, of.late)]
    return next((layout for layout in asked if layout.holds(place)), None)


def _open(place: Place, depth: int) -> AnyData | None:
    """Open one source, or return None when nothing is recognised."""
    # 1. A file, or a folder that is a data set as a whole.
    layout = _recognised(place, late=False if place.is_folder else None)
    if layout is not None:
        return _read(layout, place)
    if not place.is_folder:
        return None
    # 2. Files with data: those that have the names of a layout, or else all.
    files, split = _of_split(_data_files(place.path), place)
    inner = [replace(_at(place, path), split=split) for path in files]
    recognised = [(of, layout) for of in inner if (layout := _recognised(of))]
    found = [_read(layout, of) for of, layout in recognised]
    # 3. What lies beside images, then the folders inside.
    if not found and (layout := _recognised(place, late=True)):
        return _read(layout, place)
    if not found and depth:
        found = _open_subfolders(place, depth - 1)
    return _combine(found, place.path, joins=bool(recognised) and all(layout.joins for _, layout in recognised))


def _read(layout: DataLayout, place: Place) -> AnyData:
    """Read a place; a split of data that have none is refused."""
    if not layout.splits:
        refuse_split(place.split, f"'{place.path}'")
    return layout.read(place)


def _at(place: Place, path: Path) -> Place:
    return replace(place, path=path)


def _json_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json*")) if path.is_file()]


def _data_files(folder: Path) -> list[Path]:
    names = [path.name for path in folder.iterdir()]
    for layout in LAYOUTS.values():
        for pattern in layout.files:
            if named := [name for name in sorted(names) if fnmatch(name, pattern)]:
                return [folder / name for name in named]
    companions = [pattern for layout in LAYOUTS.values() for pattern in layout.companions]
    usual = ("*.json", "*.jsonl", "*.csv", "*.tsv")
    return [
        folder / name
        for name in sorted(names)
        if any(fnmatch(name, of) for of in usual) and not any(fnmatch(name, of) for of in companions)
    ]


def _of_split(files: list[Path], place: Place) -> tuple[list[Path], str | None]:
    """Where the splits are files of their own, keep those of the wanted one; else pass the split on."""
    names = [split_in_name(path) for path in files]
    named = [name for name in names if name]
    if not named or None in names:
        return files, place.split
    chosen = choose_split(place.split, list(dict.fromkeys(named)), f"'{place.path}'")
    return [path for path, name in zip(files, named, strict=True) if name == chosen], None


def _open_subfolders(place: Place, depth: int) -> list[AnyData]:
    """Open what lies in the sub-folders; those that lack the split are left out, unless all do."""
    found, lacking = [], []
    folders = sorted(path for path in place.path.iterdir() if path.is_dir())
    if folders and all(path.name in SPLIT_FOLDERS for path in folders):
        folders, place = _folder_of_split(folders, place)
    for path in folders:
        try:
            data = _open(_at(place, path), depth)
        except NoSuchSplit as error:
            lacking.append(error)
            continue
        if data is not None:
            found.append(data)
    if lacking and not found:
        raise lacking[0]
    return found


def _folder_of_split(folders: list[Path], place: Place) -> tuple[list[Path], Place]:
    """Where each split is a folder of its own, keep that of the wanted one; a lone one is taken unasked."""
    named = {SPLIT_FOLDERS[path.name]: path for path in folders}
    wanted = place.split or (next(iter(named)) if len(named) == 1 else None)
    chosen = named[choose_split(SPLIT_FOLDERS.get(wanted or "", wanted), list(named), f"'{place.path}'")]
    return [chosen], replace(place, split=None)


def _combine(found: list[AnyData], folder: Path, *, joins: bool) -> AnyData | None:
    """Return the one source of a folder, its pairs and regions mixed, or its files that are one; refuse the rest."""
    if len(found) < 2:
        return found[0] if found else None
    if joins and len({data.kind for data in found if isinstance(data, Dataset)}) == 1:
        return join(found)
    by_kind = {data.kind: data for data in found if isinstance(data, Dataset)}
    if len(found) == 2 and "pairs" in by_kind and "regions" in by_kind:
        return Mixed(cast("Dataset[Pair]", by_kind["pairs"]), cast("Dataset[RegionItem]", by_kind["regions"]))
    raise MultiflowError(
        f"'{folder}' holds several data sets; open one of them, or join some as A+B: {'; '.join(map(str, found))}"
    )
