"""Kaldi's data folders: ``wav.scp``, lines ``ID PATH``, and ``text``, lines ``ID TEXT``.

What runs a program instead of naming a file (a line that ends in ``|``) is never run: such a sound is left out.
"""

from __future__ import annotations

from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.data.clips import clips_of_files, words_by_id
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.layouts import LAYOUTS, DataLayout, Place

SOUNDS, SAID, SEGMENTS = "wav.scp", "text", "segments"


def _recognise(place: Place) -> bool:
    return all((place.path / name).is_file() for name in (SOUNDS, SAID))


def _read(place: Place) -> Dataset[Clip]:
    if (place.path / SEGMENTS).is_file():
        raise MultiflowError(
            f"'{place.path / SEGMENTS}' cuts recordings into utterances, which is not read; write each utterance to a "
            "file of its own (Kaldi: extract-segments), and give the folder of these"
        )
    said = {id: text for _, id, text in words_by_id(place.path / SAID, "transcripts")}
    records, skipped = [], []
    for _, id, name in words_by_id(place.path / SOUNDS, "a list of sounds"):
        if name.endswith("|"):
            skipped.append(Skip(id, "it is a command, which is not run; write its output to a file"))
        elif (path := _file(place, name)) is None:
            skipped.append(Skip(id, f"there is no file '{name:.80}'"))
        else:
            records.append((str(path), id, said.get(id, "")))
    return clips_of_files("Kaldi data folder", place.path, records, skipped)


def _file(place: Place, name: str) -> Path | None:
    """Return a sound by its whole path, or by one from the folder or the one above it on; None if there is none."""
    roots = [place.images] if place.images is not None else [place.path, place.path.parent]
    found = next((path for root in roots if (path := root / name).is_file()), None) if name else None
    if found is not None and not any(found.resolve().is_relative_to(root.resolve()) for root in roots):
        raise MultiflowError(
            f"'{place.path / SOUNDS}' names '{name}', which lies outside of '{roots[-1]}'; if it is to be read, give "
            "the folder of the sounds with {images=DIR}",
            field="images",
        )
    return found


LAYOUTS.add("kaldi", DataLayout("a Kaldi data folder (wav.scp and text)", _recognise, _read, inside=(SOUNDS,), order=4))
