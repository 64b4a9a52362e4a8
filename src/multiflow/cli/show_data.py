"""What is in a data set on disk: how much in each split, and its first samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.cli.console import show, table
from multiflow.data import BrokenItem, Dataset, Mixed, Pair, Question, RegionItem, open_data
from multiflow.data.dataset import AnyData
from multiflow.data.files import WHOLE, NoSuchSplit
from multiflow.data.items import missing_images
from multiflow.data.source import is_labelled, open_labelled

SPLITS = ("train", "val", "test")
SAMPLES = 3
NAMED = 5
DEPTH = 2


def show_data(source: str, images: str | None = None) -> None:
    """Print the count and the first samples of every data set and split at a place on disk, and what is missing.

    Raises:
        MultiflowError: there are no data, or a split of theirs cannot be opened; the others are printed before.
    """
    wrong: list[MultiflowError] = []
    path = Path(source).expanduser()
    try:
        found = data_sets(path, images, wrong=wrong)
    except MultiflowError:
        if not is_labelled(path):
            raise
        found = labelled(path)
    missing = [missing_images(data) for _, data in found]
    rows = [
        (data.source, data.layout, split or "-", data.kind, len(data), len(data.skipped), len(lacking))
        for (split, data), lacking in zip(found, missing, strict=True)
    ]
    show(table(source, ["source", "layout", "split", "kind", "items", "skipped", "missing images"], rows))
    for (split, data), lacking in zip(found, missing, strict=True):
        lines = [line for item in islice(samples(data), SAMPLES) for line in item]
        show("", f"{data.source}{f' ({split})' if split else ''}", *(f"  {line}" for line in lines))
        for what, skips in (("missing", lacking), ("skipped", data.skipped)):
            if skips:
                listed = ", ".join(f"{skip.key} ({skip.reason})" for skip in skips[:NAMED])
                more = f" and {len(skips) - NAMED} more" if len(skips) > NAMED else ""
                show(f"  {len(skips)} {what}: {listed}{more}")
    if wrong:
        raise wrong[0]


def labelled(path: Path) -> list[tuple[str, Dataset[Any]]]:
    """Open labelled images, split by split."""
    found = []
    for split in (*SPLITS, WHOLE):
        with suppress(NoSuchSplit):
            data = open_labelled(path, split)
            found.append((split, replace(data, layout=f"{len(data.classes)} classes")))
    return found


def data_sets(
    path: Path, images: str | None = None, depth: int = DEPTH, wrong: list[MultiflowError] | None = None
) -> list[tuple[str, Dataset[Any]]]:
    """Find the data sets in the folders below a path, or else at the path itself: (split or "", data).

    A split that cannot be opened, of data whose others can, is noted in ``wrong``.
    """
    wrong = [] if wrong is None else wrong
    found: list[tuple[str, Dataset[Any]]] = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() and depth else []:
        try:
            found += data_sets(folder, images, depth - 1, wrong)
        except MultiflowError:  # no data set
            continue
    if found:
        return found
    opened = open_splits(path, images, wrong) or [("", open_data(path, images=images))]
    parts = [(split, (data.pairs, data.regions) if isinstance(data, Mixed) else (data,)) for split, data in opened]
    return [(split, data) for split, several in parts for data in several]


def open_splits(path: Path, images: str | None, wrong: list[MultiflowError]) -> list[tuple[str, AnyData]]:
    """Open every split that a data set has; note what is wrong with the others if it has one that opens."""
    opened: list[tuple[str, AnyData]] = []
    failed = []
    for split in SPLITS:
        try:
            opened.append((split, open_data(path, images=images, split=split)))
        except NoSuchSplit:
            continue
        except MultiflowError as error:
            failed.append(MultiflowError(f"split '{split}' cannot be opened: {error}"))
    wrong += failed if opened else []
    return opened


def samples(data: Dataset[Any]) -> Iterator[list[str]]:
    """Describe the items of a data set one by one, in a few lines each."""
    for number in range(len(data)):
        try:
            yield describe(data[number])
        except BrokenItem as error:
            yield [f"{error.skip.key}: {error.skip.reason}"]


def describe(item: Pair | RegionItem | Question) -> list[str]:
    """Describe an item of a data set: a line for each of its first texts."""
    size = " x ".join(map(str, getattr(item.image, "size", ())))
    head = f"{item.key}, {size} pixels"
    match item:
        case Pair():
            texts = list(item.captions)
        case Question():
            texts = [f"{item.question} {', '.join(dict.fromkeys(item.answers)) or '(no answers)'}"]
        case _:
            texts = [f"{region.captions[0]}, {box(region.box)}" for region in item.regions]
    return [head, *(f"    {text}" for text in texts[:SAMPLES])]


def box(given: tuple[float, ...] | None) -> str:
    """Write a box in words."""
    return "the whole image" if given is None else "box " + " ".join(f"{value:g}" for value in given)
