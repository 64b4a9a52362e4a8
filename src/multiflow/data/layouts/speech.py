"""Speech with what is said: a text file beside each sound, or a table or JSON list of sounds and transcripts.

A table is one of speech, not of images, where its first rows name audio files. ``metadata.csv`` with ``file_name`` and
``transcription`` is what Hugging Face calls an audio folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import MOST_TEXT, read_text
from multiflow.data.audio import audio_files, is_audio
from multiflow.data.clips import clips_of_files
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.images import WrongLayout, locate
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, of_rows
from multiflow.data.tables import IMAGE_KEYS, TEXT_KEYS, column_of, delimiter_of, header_of, rows_of

AUDIO_KEYS = ("audio", "audio_path", "audio_filepath", "wav", "sound", "clip", "recording", *IMAGE_KEYS)
SAID_KEYS = ("transcription", "transcript", "transcripts", "said", "words", *TEXT_KEYS)
LOOKED_AT = 5
"""Rows of a table that are looked at to tell what it is of."""

Records = list[tuple[str, str]]


def _recognise_table(place: Place) -> bool:
    match place.content:
        case [dict() as first, *_]:
            column = column_of(place, "audio", _given(place, first), AUDIO_KEYS, first)
            named = [entry.get(column) for entry in place.content[:LOOKED_AT] if isinstance(entry, dict)]
            return any(isinstance(name, str) and is_audio(name) for name in named)
    rows = islice(rows_of(place.lines, []), LOOKED_AT)
    return any(is_audio(cell.strip()) for _, cells in rows for cell in cells)


def _given(place: Place, held: Any) -> str | None:
    return place.image_column if place.image_column in held else None


def _read_table(place: Place) -> Dataset[Clip]:
    skipped: list[Skip] = []
    records = _of_json(place, skipped) if isinstance(place.content, list) else _of_rows(place, skipped)
    return _located(f"audio files with {place.path.name}", place, records, skipped)


def _of_json(place: Place, skipped: list[Skip]) -> Records:
    first = place.content[0]
    audio = column_of(place, "audio", place.image_column, AUDIO_KEYS, first)
    text = _text_column(place, first)
    records = []
    for number, entry in enumerate(place.content):
        name, said = (entry.get(key) if isinstance(entry, dict) else None for key in (audio, text))
        if not isinstance(name, str) or not name:
            skipped.append(Skip(f"entry {number}", f"it names no audio file under '{audio}'"))
        elif said is not None and not isinstance(said, str):
            skipped.append(Skip(name, f"'{text}' holds {type(said).__name__}, not a text"))
        else:
            records.append((name, said or ""))
    return records


def _of_rows(place: Place, skipped: list[Skip]) -> Records:
    lines = place.lines
    rows = list(rows_of(lines, skipped))
    header = header_of(place, rows[0][1], AUDIO_KEYS, SAID_KEYS) if rows else {}
    width = len(rows[0][1]) if rows else 0
    if any(map(is_audio, header)):  # no header: the first column is the sound, the rest what is said
        if given := place.image_column or place.text_column:
            raise unknown(f"column of '{place.path}'", given, ())
        return [(cells[0].strip(), delimiter_of(lines).join(cells[1:]).strip()) for _, cells in rows]
    audio = column_of(place, "audio", place.image_column, AUDIO_KEYS, header)
    if audio is None:
        raise WrongLayout(
            f"no column of '{place.path}' is known to name audio files (it has {', '.join(header)}); tell which with "
            "{image_column=NAME}",
            field="image_column",
        )
    at, said = header[audio], header[_text_column(place, header)]
    records = []
    for number, cells in rows[1:]:
        if len(cells) > width and said == width - 1:  # delimiters in the last column need no quotes
            cells = [*cells[:said], delimiter_of(lines).join(cells[said:])]
        if len(cells) > width or max(at, said) >= len(cells):
            skipped.append(Skip(f"line {number}", f"it has {len(cells)} cells; the header names {width}"))
        elif not cells[at].strip():
            skipped.append(Skip(f"line {number}", "it names no audio file"))
        else:
            records.append((cells[at].strip(), cells[said].strip()))
    return records


def _text_column(place: Place, held: Any) -> str:
    column = column_of(place, "text", place.text_column, SAID_KEYS, held)
    if column is None:
        raise WrongLayout(
            f"'{place.path}' names audio files, and no column is known to say what is spoken in them (it has "
            f"{', '.join(map(str, islice(held, 8)))}); tell which with {{text_column=NAME}}",
            field="text_column",
        )
    return column


def _beside(name: str) -> str:
    return os.path.splitext(name)[0] + ".txt"


def _recognise_folder(place: Place) -> bool:
    return place.is_folder and any((place.path / _beside(name)).is_file() for name in audio_files(place.path))


def _read_folder(place: Place) -> Dataset[Clip]:
    records, skipped = [], []
    for name in audio_files(place.path):
        try:
            records.append((name, " ".join(read_text(place.path / _beside(name), "a transcript", MOST_TEXT).split())))
        except MultiflowError:
            skipped.append(Skip(name, f"no readable transcript {_beside(name)}"))
    return _located("audio folder with a text beside each file", place, records, skipped)


def _located(layout: str, place: Place, records: Records, skipped: Sequence[Skip]) -> Dataset[Clip]:
    """Look where the sounds with a transcript lie."""
    said = [record for record in records if record[1].strip()]
    folder = place.path if place.is_folder else place.path.parent
    paths = locate([[name for name, _ in said]], folder, place.images, f"'{place.path}'", "audio files") if said else []
    silent = [("", name, "") for name, text in records if not text.strip()]
    found = [(path, name, text) for path, (name, text) in zip(paths, said, strict=True)]
    return clips_of_files(layout, place.path, [*found, *silent], skipped)


LAYOUTS.add(
    "speech",
    DataLayout(
        "a table or JSON list of {audio, transcription} beside audio files (metadata.csv: file_name,transcription)",
        of_rows(_recognise_table),
        _read_table,
        order=6,
    ),
)
LAYOUTS.add(
    "speech-beside",
    DataLayout("NAME.txt, what is said, beside each NAME.wav or NAME.flac", _recognise_folder, _read_folder, order=11),
)
