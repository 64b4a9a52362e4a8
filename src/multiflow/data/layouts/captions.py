"""Tables of images and captions: JSON lists and JSON lines with any keys, CSV, TSV, and ``captions.json``.

Which column holds the image and which the text is told by their usual names, or else by the user.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from msgspec import defstruct, field

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import read_text
from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.images import WrongLayout, is_image, pairs_of_files, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place

Texts = str | list[str] | None
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
NUMBERED = re.compile(r"#\d+$")  # of Flickr30k: one image, five lines


def _recognise(place: Place) -> bool:
    match place.content:
        case [dict() as first, *_]:
            image = _column(place, "image", place.image_column, IMAGE_KEYS, first)
            text = _column(place, "text", place.text_column, TEXT_KEYS, first)
            return image == "image" or None not in (image, text)
        case dict() as content if content and all(map(is_image, content)):
            return True
    return place.path.suffix.lower() in TABLES or place.path.name == "captions.txt"


def _read(place: Place) -> Dataset[Pair]:
    skipped: list[Skip] = []
    if isinstance(place.content, dict):
        layout, rows = "image folder with captions.json", place.as_(dict[str, Texts]).items()
        records = [(name, texts_of(texts)) for name, texts in rows]
    elif isinstance(place.content, list):
        layout, records = "plain JSON list", list(_json_rows(place))
    else:
        layout = f"image folder with {place.path.name}"
        captions: dict[str, list[str]] = {}
        for name, text in _table_rows(place, skipped):
            captions.setdefault(NUMBERED.sub("", name), []).append(text)
        records = [(name, texts_of(texts)) for name, texts in captions.items()]
    return pairs_of_files(layout, place.path, place.images, records, skipped=skipped)


def _json_rows(place: Place) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return image name and captions of every entry of a JSON list; further keys may hold anything."""
    first = place.content[0]
    image = _column(place, "image", place.image_column, IMAGE_KEYS, first)
    text = _column(place, "text", place.text_column, TEXT_KEYS, first)
    if text is None:
        held = ", ".join(f"'{key}'" for key in islice(first, 8))
        raise WrongLayout(
            f"entry 0 of '{place.path}' has no 'caption' (it has {held}); every entry needs one, or tell which key "
            "holds the text with {text_column=NAME}",
            field="text_column",
        )
    row: Any = defstruct("Row", [("image", str, field(name=image)), ("text", Texts, field(name=text))])
    return ((entry.image, texts_of(entry.text)) for entry in place.as_(list[row]))


def _table_rows(place: Place, skipped: list[Skip]) -> Iterator[tuple[str, str]]:
    """Yield image name and caption of every row of a table; rows that cannot be told apart are noted as skipped.

    A header is a first row that names columns. Without one, the first column is the image and the rest the caption.
    Where the caption is the last column, delimiters in it need no quotes.
    """
    lines = re.sub("\r\n?", "\n", read_text(place.path, "a table of images and captions")).split("\n")
    rows = list(_rows(lines, skipped))
    if not rows:
        raise MultiflowError(f"'{place.path}' holds no rows; expected image{_delimiter(lines)!r}caption on every line")
    header = dict.fromkeys(cell.strip() for cell in rows[0][1])
    image = _column(place, "image", place.image_column, IMAGE_KEYS, header)
    text = _column(place, "text", place.text_column, TEXT_KEYS, header)
    given = place.image_column or place.text_column
    if given and (image is None or text is None):
        raise unknown(f"column of '{place.path}'", given if given not in header else TEXT_KEYS[0], header)
    columns = (list(header).index(image), list(header).index(text)) if image and text else None
    for number, cells in rows[1:] if columns else rows:
        if columns is None:
            name, caption = cells[0].strip(), _delimiter(lines).join(cells[1:]).strip()
        elif columns[1] == len(header) - 1 and len(cells) > len(header):
            name, caption = cells[columns[0]].strip(), _delimiter(lines).join(cells[columns[1] :]).strip()
        elif max(columns) >= len(cells) or len(cells) > len(header):
            skipped.append(Skip(f"line {number}", f"it has {len(cells)} cells; the header names {len(header)}"))
            continue
        else:
            name, caption = (cells[column].strip() for column in columns)
        if not name or not caption:
            skipped.append(Skip(f"line {number}", "no image" if not name else f"no caption of {name}"))
            continue
        yield name, caption


def _rows(lines: list[str], skipped: list[Skip]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line of each row, counted from 1, and its cells."""
    delimiter, number = _delimiter(lines), 0
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


def _delimiter(lines: list[str]) -> str:
    first = next((line for line in lines if line.strip()), "")
    return next((delimiter for delimiter in "\t,;|" if delimiter in first), ",")


def _column(place: Place, kind: str, given: str | None, usual: tuple[str, ...], held: Mapping[str, Any]) -> str | None:
    """Return the column that is given, or the first of the usual names that there is; None if there is none."""
    if given is not None:
        if given not in held:
            raise unknown(f"{kind} column of '{place.path}'", given, map(str, held))
        return given
    by_name = {str(name).lower(): name for name in held}
    return next((by_name[name] for name in usual if name in by_name), None)


LAYOUTS.add(
    "captions",
    DataLayout(
        "a JSON list or JSON lines of {image, caption}, captions.json ({image: caption}), or a table (.csv, .tsv, "
        "captions.txt: image<TAB>caption) beside images",
        _recognise,
        _read,
        ["captions.json", "captions.txt", "metadata.jsonl", "metadata.csv"],
        order=7,
    ),
)
