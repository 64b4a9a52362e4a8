"""LJSpeech: ``metadata.csv`` with lines ``ID|as written|as spoken`` and no header, sounds ``wavs/ID.wav``.

Quotes are part of the text. Of two texts the last one, with numbers and abbreviations spelt out, is the transcript.
"""

from __future__ import annotations

from pathlib import Path

from multiflow.base.files import read_text
from multiflow.data.audio import is_audio
from multiflow.data.clips import clips_of_files, inside, sound_of
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.layouts import LAYOUTS, DataLayout, Place
from multiflow.data.tables import TABLES

SOUNDS = ("wavs", "wav", ".")
BETWEEN = "|"


def _recognise(place: Place) -> bool:
    first = next((line for line in place.lines[:5] if line.strip()), "")
    cells = first.split(BETWEEN)
    return len(cells) in (2, 3) and _sound(_folders(place), cells[0].strip()) is not None


def _folders(place: Place) -> list[Path]:
    return [place.images] if place.images is not None else [place.path.parent / name for name in SOUNDS]


def _sound(folders: list[Path], name: str) -> Path | None:
    """Return the file of a sound, which may be named with or without its ending and its folder."""
    if not name or not inside(name):
        return None
    tried = (folder / name for folder in folders)
    if is_audio(name):
        return next((path for path in tried if path.is_file()), None)
    return next((found for path in tried if (found := sound_of(path)) is not None), None)


def _read(place: Place) -> Dataset[Clip]:
    records, skipped, folders = [], [], _folders(place)
    for number, line in enumerate(read_text(place.path, "transcripts").split("\n"), 1):
        if not line.strip():
            continue
        name, *texts = (cell.strip() for cell in line.split(BETWEEN))
        if (sound := _sound(folders, name)) is None:
            skipped.append(Skip(f"line {number}", f"there is no sound '{name:.60}' in {', '.join(map(str, folders))}"))
        else:
            records.append((str(sound), name, next((text for text in reversed(texts) if text), "")))
    return clips_of_files("LJSpeech", place.path, records, skipped)


LAYOUTS.add(
    "ljspeech",
    DataLayout(
        "LJSpeech (metadata.csv: ID|as written|as spoken, beside wavs/)",
        _recognise,
        _read,
        suffixes=(*TABLES, ".txt"),
        order=4,
    ),
)
