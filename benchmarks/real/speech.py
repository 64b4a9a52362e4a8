"""Speech with what is said, out of three packages, as ordinary data folders: audio files and ``metadata.csv``.

- ``prompts-calibration`` and ``prompts-test``: prompts of a telephone exchange by one speaker, split in two;
- ``readers``: ten clips of other speakers, read from a novel and from playing cards;
- ``stamps``: children's descriptions of pictures, by yet other speakers.
"""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from benchmarks.real.fetch import folder
from multiflow.base.errors import MultiflowError
from multiflow.base.runs import whole_folder
from multiflow.data.audio import load_sound
from multiflow.data.dataset import BrokenItem
from multiflow.data.sampling import Stream, random_at

Clip: TypeAlias = tuple[Path, str]
SPOKEN = re.compile(r"<s>\s*(.*?)\s*</s>\s*\(([^)]+)\)")
ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
FEWEST_WORDS = 3
SHORTEST, LONGEST = 0.5, 9.0  # seconds
SPLIT_SEED = 20


def prompts(cache: Path) -> Iterator[Clip]:
    """Yield the prompts whose text is all speech and has three words or more."""
    sounds = folder(cache, "asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds/en_US_f_Allison"
    texts = folder(cache, "asterisk-core-sounds-en") / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    for line in gzip.decompress(texts.read_bytes()).decode("utf-8", "replace").splitlines():
        name, colon, text = line.partition(":")
        spoken = not (line.startswith(";") or set("[]()<>") & set(text))
        if colon and spoken and len(text.split()) >= FEWEST_WORDS:
            yield sounds / f"{name.strip()}.wav", text.strip()


def readers(cache: Path) -> Iterator[Clip]:
    """Yield the clips of pocketsphinx that have a transcript."""
    home = folder(cache, "pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data"
    for place in (home / "librivox" / "transcription", home / "cards" / "cards.transcription"):
        for text, name in SPOKEN.findall(place.read_text(encoding="utf-8")):
            yield place.with_name(f"{name}.wav"), text


def stamps(cache: Path) -> Iterator[Clip]:
    """Yield the English descriptions of Tux Paint's stamps, without the article that the speakers leave out."""
    home = folder(cache, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    for sound in sorted(home.rglob("*_desc.ogg")):
        text = sound.with_name(sound.name.removesuffix("_desc.ogg") + ".txt")
        if text.is_file():
            lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
            yield sound, ARTICLE.sub("", lines[0].strip()).capitalize() if lines else ""


def prompts_of(part: int) -> Callable[[Path], Iterator[Clip]]:
    """Return the reader of every second prompt, in an order that is drawn once and for all."""

    def read(cache: Path) -> Iterator[Clip]:
        clips = [clip for clip in prompts(cache) if fits(*clip)]
        order = random_at(SPLIT_SEED, Stream.ORDER, 0).permutation(len(clips))
        yield from (clips[at] for at in sorted(order[part::2]))

    return read


READERS: Mapping[str, Callable[[Path], Iterator[Clip]]] = {
    "prompts-calibration": prompts_of(0),
    "prompts-test": prompts_of(1),
    "readers": readers,
    "stamps": stamps,
}


def fits(sound: Path, text: str) -> bool:
    """Tell whether a clip has a text, can be read, and is as long as the window of ten seconds allows."""
    try:
        return bool(text) and SHORTEST <= load_sound(sound, sound.name).seconds <= LONGEST
    except BrokenItem:
        return False


def speech_folder(cache: Path, name: str) -> Path:
    """Return the data folder of a part of the speech, which is written once.

    Args:
        cache: of the fetched packages.
        name: one of `READERS`.

    Raises:
        MultiflowError: a package is not there, or holds no clip that fits.
    """
    out = cache / "made" / "speech" / name
    if not (out / "metadata.csv").is_file():
        clips = [clip for clip in READERS[name](cache) if fits(*clip)]
        if not clips:
            raise MultiflowError(f"no clip of '{name}' in '{cache}' has a transcript and the right length")
        with whole_folder(out, refuse=lambda place: None) as made:
            rows = [("file_name", "transcription")]
            for number, (sound, text) in enumerate(clips):
                rows.append((f"{number:03d}-{sound.name}", text))
                shutil.copyfile(sound, made / rows[-1][0])
            with (made / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
    return out
