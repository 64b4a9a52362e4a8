"""How data sets lie on disk: one file a layout, found by being here.

A module of this package adds one or more records to `LAYOUTS`. Nothing else knows a layout by name, and no module here
knows another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from multiflow.base.files import read_json, read_text
from multiflow.base.registry import Registry
from multiflow.data.dataset import AnyData
from multiflow.data.images import WrongLayout
from multiflow.data.tables import TABLES

Schema = TypeVar("Schema")
JSON_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class Place:
    """A file or folder in which data may lie, and what the user said about it."""

    path: Path  # the file or folder
    images: Path | None = None  # folder that image names are relative to; None = looked for around the file
    split: str | None = None  # which split to read; None = the usual one
    # name of the column or key that holds the images; None = told by its name and content
    image_column: str | None = None
    text_column: str | None = None  # as `image_column`, of the texts
    source: str = ""  # what the user wrote, where that is no path

    @cached_property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def content(self) -> Any:
        """What a JSON file holds; None for other files and for folders."""
        return None if self.is_folder or self.path.suffix.lower() not in JSON_SUFFIXES else read_json(self.path)

    @cached_property
    def lines(self) -> list[str]:
        """The lines of a text file, such as a table."""
        return re.sub("\r\n?", "\n", read_text(self.path, "a table of images and texts")).split("\n")

    def as_(self, schema: type[Schema], content: Any = None, path: Path | None = None) -> Schema:
        """Return the content of the file as a schema wants it, or other content, read from another path.

        Raises:
            WrongLayout: a field is missing or of another type; the error names its place.
        """
        content = self.content if path is None else content
        try:
            return msgspec.convert(content, schema)
        except (msgspec.ValidationError, OverflowError) as error:
            raise _misfit(str(error), content, path or self.path) from error


@dataclass(frozen=True)
class DataLayout:
    """One layout of data sets."""

    form: str  # what it looks like, for users: file names, keys
    recognise: Callable[[Place], bool]  # whether a file or a folder is in this layout, by its content
    read: Callable[[Place], AnyData]  # opens the data; called only for what was recognised
    # patterns of the names that its files have; in a folder that has some, these alone are opened
    files: Sequence[str] = ()
    companions: Sequence[str] = ()  # patterns of files that belong to it and hold no data of their own
    splits: bool = field(default=False, kw_only=True)  # whether it has splits
    joins: bool = field(default=False, kw_only=True)  # whether several files of it in one folder are one data set
    # whether it holds labelled images, which are opened for classification alone
    labelled: bool = field(default=False, kw_only=True)
    prefix: str | None = field(default=None, kw_only=True)  # what a source that is no path begins with
    # endings of the files that it can be, and names in the folders that it can be; other files and folders are not
    # asked. Without either all are
    suffixes: Sequence[str] = field(default=(), kw_only=True)
    inside: Sequence[str] = field(default=(), kw_only=True)
    # the lower, the earlier it is asked; from 10 on only where no file of a folder is recognised
    order: int = field(default=5, kw_only=True)

    @property
    def late(self) -> bool:
        """Whether it is asked of a folder only where none of the folder's files is recognised."""
        return self.order >= 10

    def holds(self, place: Place) -> bool:
        """Whether a place is in this layout."""
        if self.suffixes or self.inside:
            if place.is_folder and not any((place.path / name).exists() for name in self.inside):
                return False
            if not place.is_folder and place.path.suffix.lower() not in self.suffixes:
                return False
        return self.recognise(place)


LAYOUTS: Registry[DataLayout] = Registry("layout", __name__, order=lambda name, layout: layout.order)
"""Every layout, in the order in which they are asked."""


def list_of(*keys: str) -> Callable[[Place], bool]:
    """Return what recognises a JSON list by a key of its first entry, any of these."""
    return lambda place: (
        isinstance(place.content, list)
        and any(isinstance(first, dict) and not first.keys().isdisjoint(keys) for first in place.content[:1])
    )


def with_list(key: str) -> Callable[[Place], bool]:
    """Return what recognises a JSON object by the key of a list in it."""
    return lambda place: isinstance(held := place.content, dict) and isinstance(held.get(key), list)


def of_rows(recognise: Callable[[Place], bool]) -> Callable[[Place], bool]:
    """Return what asks a table or a JSON list of objects, and is nothing else."""

    def asked(place: Place) -> bool:
        match place.content:
            case [dict(), *_]:
                return recognise(place)
            case None:
                return not place.is_folder and place.path.suffix.lower() in TABLES and recognise(place)
        return False

    return asked


def of_files(suffix: str) -> Callable[[Place], bool]:
    """Return what recognises a file by its suffix, and a folder that has such files."""
    return lambda place: any(place.path.glob(f"*{suffix}")) if place.is_folder else place.path.suffix == suffix


def _misfit(said: str, content: Any, path: Path) -> WrongLayout:
    """Say in a sentence what msgspec says, such as ``Object missing required field `split` - at `$.images[3]```."""
    what, _, place = said.partition(" - at `$")
    place = place.rstrip("`")
    where = re.sub(r"^\[(\d+)\]\.?", r"entry \1, ", place.lstrip(".")).replace("[...]", "").removesuffix(", ")
    where = f"{where} of '{path}'" if where else f"'{path}'"
    if lacks := re.search(r"missing required field `(.*)`", what):
        for step in re.findall(r"\.(\w+)|\[(\d+)\]", place):
            content = content[step[0] or int(step[1])]
        held = ", ".join(f"'{key:.40}'" for key in islice(content, 8)) or "nothing"
        return WrongLayout(f"{where} has no '{lacks[1]}' (it has {held}); every entry needs one")
    what = what.replace("`", "").replace("Expected", "expected").replace("array", "list").replace(" |", " or")
    return WrongLayout(f"{where} does not fit its layout: {what}; correct it")
