"""Clips of speech out of files: what the layouts of speech have in common."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_text
from multiflow.data.audio import AUDIO_SUFFIXES, Sound, load_sound
from multiflow.data.dataset import Clip, Dataset, Skip
from multiflow.data.images import choose_split, data_of_files


def clips_of_files(
    layout: str, source: Path, records: Sequence[tuple[str, str, str]], skipped: Iterable[Skip] = ()
) -> Dataset[Clip]:
    """Make the data set of sounds that have a transcript; the others are noted as skipped.

    Args:
        layout: in words.
        source: the file or folder that was opened.
        records: path, name for errors, and transcript of each sound.
        skipped: what was left out before.

    Raises:
        MultiflowError: no sound has a transcript.
    """
    good = [record for record in records if record[2].strip()]
    left = [*skipped, *(Skip(name, "no transcript") for _, name, text in records if not text.strip())]
    if not good:
        first = f"; the first was left out: {left[0].key} ({left[0].reason})" if left else ""
        raise MultiflowError(
            f"transcripts are missing: none of the {len(left)} sounds in '{source}' has one; every sound needs "
            f"one{first}"
        )
    paths, names = [path for path, *_ in good], [name for _, name, _ in good]
    texts = [(text.strip(),) for *_, text in good]
    return data_of_files(
        *("clips", layout, source, paths, names, _make_clip, texts, texts), skipped=left, load=load_sound
    )


def _make_clip(sound: Sound, name: str, text: str) -> Clip:
    return Clip(sound, text, name)


def sound_of(stem: Path) -> Path | None:
    """Return the audio file of this name, whatever its ending; None if there is none.

    >>> sound_of(Path("nowhere/84-121123-0000")) is None
    True
    """
    return next(
        (path for ending in sorted(AUDIO_SUFFIXES) if (path := stem.with_name(stem.name + ending)).is_file()), None
    )


def words_by_id(path: Path, what: str, delimiter: str | None = None) -> list[tuple[int, str, str]]:
    """Return number, id and text of the lines ``ID TEXT`` of a file; empty lines say nothing.

    Args:
        path: of the file.
        what: it holds, for errors.
        delimiter: between both; None = white space.
    """
    lines = read_text(path, what).split("\n")
    cut = [(number, line.strip().split(delimiter, 1)) for number, line in enumerate(lines, 1) if line.strip()]
    return [(number, parts[0].strip(), parts[1].strip() if len(parts) > 1 else "") for number, parts in cut]


def inside(name: str) -> bool:
    """Whether a name stays inside the folder that it is relative to."""
    return not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def choose_part(given: str | None, held: Collection[str], where: str) -> str:
    """As `choose_split`: ``val`` may be called ``dev``, and a lone split is taken where none is asked for.

    >>> choose_part("val", ["train", "dev", "test"], "'cv'")
    'dev'
    """
    names = list(held)
    if given is None:
        given = names[0] if len(names) == 1 else None
    elif given not in names and given in ("val", "validation", "dev"):
        given = next((name for name in ("dev", "val", "validation") if name in names), given)
    return choose_split(given, names, where)
