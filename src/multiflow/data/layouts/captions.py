"""Tables of images and captions: JSON lists and JSON lines with any keys, CSV, TSV, and ``captions.json``.

Which column holds the image and which the text is told by their usual names, or else by the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec import defstruct, field

from multiflow.base.errors import MultiflowError, unknown
from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.images import WrongLayout, is_image, pairs_of_files, texts_of
from multiflow.data.layouts import JSON_SUFFIXES, LAYOUTS, DataLayout, Place
from multiflow.data.tables import IMAGE_KEYS, TABLES, TEXT_KEYS, column_of, delimiter_of, header_of, rows_of

Texts = str | list[str] | None
NUMBERED = re.compile(r"#\d+$")  # of Flickr30k: one image, five lines


def _recognise(place: Place) -> bool:
    match place.content:
        case [dict() as first, *_]:
            image = column_of(place, "image", place.image_column, IMAGE_KEYS, first)
            text = column_of(place, "text", place.text_column, TEXT_KEYS, first)
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
    image = column_of(place, "image", place.image_column, IMAGE_KEYS, first)
    text = column_of(place, "text", place.text_column, TEXT_KEYS, first)
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
    lines = place.lines
    rows = list(rows_of(lines, skipped))
    if not rows:
        raise MultiflowError(
            f"'{place.path}' holds no rows; expected image{delimiter_of(lines)!r}caption on every line"
        )
    header, width = header_of(place, rows[0][1], IMAGE_KEYS, TEXT_KEYS), len(rows[0][1])
    image = column_of(place, "image", place.image_column, IMAGE_KEYS, header)
    text = column_of(place, "text", place.text_column, TEXT_KEYS, header)
    given = place.image_column or place.text_column
    if given and (image is None or text is None):
        raise unknown(f"column of '{place.path}'", given if given not in header else TEXT_KEYS[0], header)
    columns = (header[image], header[text]) if image and text else None
    if columns is None and not _names_image(rows[0][1]) and any(_names_image(cells) for _, cells in rows[1:]):
        names = ", ".join(f"'{name:.40}'" for name in islice(header, 8))
        raise WrongLayout(
            f"the first row of '{place.path}' ({names}) neither names an image nor columns as they are usually called; "
            "tell which they are with {image_column=NAME} and {text_column=NAME}",
            field=("image_column", "text_column"),
        )
    for number, cells in rows[1:] if columns else rows:
        if columns is None:
            name, caption = cells[0].strip(), delimiter_of(lines).join(cells[1:]).strip()
        elif columns[1] == width - 1 and len(cells) > width:
            name, caption = cells[columns[0]].strip(), delimiter_of(lines).join(cells[columns[1] :]).strip()
        elif max(columns) >= len(cells) or len(cells) > width:
            skipped.append(Skip(f"line {number}", f"it has {len(cells)} cells; the header names {width}"))
            continue
        else:
            name, caption = (cells[column].strip() for column in columns)
        if not name or not caption:
            skipped.append(Skip(f"line {number}", "no image" if not name else f"no caption of {name}"))
            continue
        yield name, caption


def _names_image(cells: list[str]) -> bool:
    return any(is_image(cell.strip()) for cell in cells)


LAYOUTS.add(
    "captions",
    DataLayout(
        "a JSON list or JSON lines of {image, caption}, captions.json ({image: caption}), or a table (.csv, .tsv, "
        "captions.txt: image<TAB>caption) beside images",
        _recognise,
        _read,
        ["captions.json", "captions.txt", "metadata.jsonl", "metadata.csv"],
        order=7,
        suffixes=(*TABLES, ".txt", *JSON_SUFFIXES),
    ),
)
