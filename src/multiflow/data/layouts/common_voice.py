"""Common Voice: ``train.tsv``, ``dev.tsv``, ``test.tsv``, ... with ``path`` and ``sentence``, sounds in ``clips/``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from multiflow.base.files import MOST_TEXT, open_regular, read_text
from multiflow.data.clips import choose_part, clips_of_files, inside
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.images import refuse_split
from multiflow.data.layouts import LAYOUTS, DataLayout, Place
from multiflow.data.tables import rows_of

CLIPS, SUFFIX = "clips", ".tsv"
NAMED = ("client_id", "path", "sentence")
"""Columns that every table of the release has."""


def _recognise(place: Place) -> bool:
    if place.is_folder:
        return (place.path / CLIPS).is_dir() and bool(_tables(place.path))
    return place.path.suffix == SUFFIX and _clips_of(place).is_dir() and place.path.is_file() and _is_table(place.path)


def _tables(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.is_file() and _is_table(path)}


def _is_table(path: Path) -> bool:
    try:
        with open_regular(path) as file:  # of a first line without an end no more is read
            begin = file.read(MOST_TEXT).decode("utf-8-sig", errors="replace")
    except OSError:
        return False
    return set(NAMED) <= set(_names(begin.split("\n", 1)[0].split("\t")))


def _names(cells: Iterable[str]) -> list[str]:
    return [cell.strip() for cell in cells]


def _clips_of(place: Place) -> Path:
    if place.images is not None:
        return place.images
    return (place.path if place.is_folder else place.path.parent) / CLIPS


def _read(place: Place) -> Dataset[Clip]:
    if place.is_folder:
        tables = _tables(place.path)
        path = tables[choose_part(place.split, tables, f"'{place.path}'")]
    else:
        refuse_split(place.split, f"'{place.path}', one table,")
        path = place.path
    clips, records = _clips_of(place), []
    skipped: list[Skip] = []
    rows = rows_of(read_text(path, "a table of Common Voice").split("\n"), skipped)
    header = _names(next(rows)[1])
    at, said = header.index("path"), header.index("sentence")
    for number, cells in rows:
        if len(cells) <= max(at, said):
            skipped.append(Skip(f"line {number}", f"it has {len(cells)} cells; the header names {len(header)}"))
        elif not (name := cells[at].strip()) or not inside(name):
            skipped.append(Skip(f"line {number}", f"'{name:.60}' names no sound inside of '{clips.name}'"))
        elif not (clips / name).is_file():
            skipped.append(Skip(name, f"it is not in '{clips}'"))
        else:
            records.append((str(clips / name), name, cells[said]))
    return clips_of_files(f"Common Voice, {path.name}", place.path, records, skipped)


LAYOUTS.add(
    "common-voice",
    DataLayout(
        "Common Voice (train.tsv, dev.tsv, test.tsv with path and sentence, beside clips/)",
        _recognise,
        _read,
        splits=True,
        suffixes=(SUFFIX,),
        inside=(CLIPS,),
        order=4,
    ),
)
