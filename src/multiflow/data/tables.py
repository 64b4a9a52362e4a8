"""What rows and records of data files have in common: rows of tables, columns told by their usual names, turns.

A row of a CSV or TSV file that is broken costs itself alone.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.data.dataset import Skip

if TYPE_CHECKING:
    from multiflow.data.layouts import Place

IMAGE_KEYS = (
    "image",
    "file_name",
    "filename",
    "image_path",
    "filepath",
    "path",
    "file",
    "img",
    "image_name",
)
TEXT_KEYS = ("caption", "captions", "text", "texts", "sentence", "sentences", "description", "comment", "title", "txt")
TABLES = (".csv", ".tsv")
MOST_LINES = 64  # of one row
NEXT_ROW = re.compile(r"\n[^\n]{1,200}?\.(jpe?g|png|webp|bmp|gif|tiff?)[\"']?[,;|]", re.IGNORECASE)


def rows_of(lines: list[str], skipped: list[Skip]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line of each row, counted from 1, and its cells."""
    delimiter, number = delimiter_of(lines), 0
    while number < len(lines):
        cells, used = [], 1
        if delimiter == "\t":  # a tab ends a cell, and quotes are part of the text
            cells = lines[number].rstrip("\r").split("\t") if lines[number].strip() else []
        elif row := _quoted_row(lines[number : number + MOST_LINES], delimiter):
            cells, used = row
        else:
            skipped.append(Skip(f"line {number + 1}", "its quotes do not close"))
        if cells:
            yield number + 1, cells
        number += used


def _quoted_row(lines: list[str], delimiter: str) -> tuple[list[str], int] | None:
    """Return the cells of the row that begins with the first line, and on how many lines it lies.

    None where its quotes never close, or where they close in what looks like another row.
    """
    for used in range(1, len(lines) + 1):
        text = "\n".join(lines[:used]).rstrip("\r")
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        return None if NEXT_ROW.search(text) else (cells, used)
    return None


def delimiter_of(lines: list[str]) -> str:
    first = next((line for line in lines if line.strip()), "")
    return next((delimiter for delimiter in "\t,;|" if delimiter in first), ",")


def header_of(place: Place, cells: Iterable[str], *usual: tuple[str, ...]) -> dict[str, int]:
    """Return the name of each column of a table -> which cell of a row it is, the first of those of one name.

    Args:
        place: of the table.
        cells: of its first row.
        usual: names by which columns are told.

    Raises:
        MultiflowError: a column that is asked for, or that would be told by its name, is there twice.
    """
    names = [cell.strip() for cell in cells]
    given = {name for name in (place.image_column, place.text_column) if name is not None}
    for wanted in given or {name for group in usual for name in group}:
        twice = [name for name in names if wanted == (name if given else name.lower())]
        if len(twice) > 1:
            raise MultiflowError(
                f"'{place.path}' has {len(twice)} columns called '{wanted}', so that it is not known which is meant; "
                "rename one of them"
            )
    return {name: names.index(name) for name in names}


def column_of(
    place: Place, kind: str, given: str | None, usual: tuple[str, ...], held: Mapping[str, Any]
) -> str | None:
    """Return the column that is given, or the first of the usual names that there is; None if there is none."""
    if given is not None:
        if given not in held:
            raise unknown(f"{kind} column of '{place.path}'", given, map(str, held))
        return given
    by_name = {str(name).lower(): name for name in held}
    return next((by_name[name] for name in usual if name in by_name), None)


ASSISTANT = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
PLACE = "<image>"  # where the image stands in what was asked


def turns_of(said: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what the assistant of a conversation said, each after what was said to it just before.

    Args:
        said: who says what, in order.

    >>> list(turns_of([("human", "<image> What?"), ("gpt", "A dog."), ("human", "And?"), ("gpt", "A cat.")]))
    [('What?', 'A dog.'), ('And?', 'A cat.')]
    """
    before = ""
    for speaker, given in said:
        text = given.replace(PLACE, "").strip()
        if speaker.lower() not in ASSISTANT:
            before = text
        elif text:
            yield before, text
            before = ""
