"""LibriSpeech: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt``, lines ``ID TEXT``, with ``ID.flac`` beside.

Its parts (``train-clean-100``, ``dev-clean``, ``test-other``, ...) are splits where their folder is opened; ``train``
is all that begin so, ``val`` and ``test`` the one part that does.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

from multiflow.data.clips import choose_part, clips_of_files, sound_of, words_by_id
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.images import refuse_split
from multiflow.data.layouts import LAYOUTS, DataLayout, Place

ENDING = ".trans.txt"
PART = re.compile(r"(train|dev|test)-\w+(-\d+)?$")
DEPTH = 3  # folders below one another: part, speaker, chapter
LOOKED_AT = 3  # folders of each that are looked into to tell whether there are transcripts
CALLED = {"val": "dev", "validation": "dev"}


def _recognise(place: Place) -> bool:
    return place.is_folder and _has_transcripts(place.path, DEPTH)


def _has_transcripts(folder: Path, depth: int) -> bool:
    try:
        with os.scandir(folder) as entries:
            held = list(entries)
    except OSError:
        return False
    if any(entry.name.endswith(ENDING) for entry in held):
        return True
    inner = islice(sorted(entry.path for entry in held if entry.is_dir()), LOOKED_AT) if depth else ()
    return any(_has_transcripts(Path(path), depth - 1) for path in inner)


def _read(place: Place) -> Dataset[Clip]:
    folders = _parts(place)
    records, skipped = [], []
    for folder in folders:
        for file in sorted(folder.rglob(f"*{ENDING}")):
            for number, id, text in words_by_id(file, "transcripts"):
                sound = sound_of(file.parent / id) if os.path.basename(id) == id else None
                if sound is None:
                    skipped.append(Skip(f"line {number} of {file.name}", f"there is no sound '{id:.60}' beside it"))
                else:
                    records.append((str(sound), sound.name, text))
    return clips_of_files("LibriSpeech", place.path, records, skipped)


def _parts(place: Place) -> list[Path]:
    """Return the folders of the split that is asked for; the folder itself where it has no parts."""
    held = sorted(path.name for path in place.path.iterdir() if path.is_dir() and PART.match(path.name))
    if not held:
        refuse_split(place.split, f"'{place.path}'")
        return [place.path]
    if place.split == "all":
        return [place.path / name for name in held]
    wanted = CALLED.get(place.split or "train", place.split or "train")
    fitting = [name for name in held if name.startswith(f"{wanted}-")]
    if fitting and (wanted == "train" or len(fitting) == 1):
        return [place.path / name for name in fitting]
    return [place.path / choose_part(place.split, held, f"'{place.path}'")]


LAYOUTS.add(
    "librispeech",
    DataLayout("LibriSpeech (*.trans.txt beside FLAC files)", _recognise, _read, splits=True, order=11),
)
