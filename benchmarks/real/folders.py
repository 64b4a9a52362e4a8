"""The pictures of the real world as ordinary data folders: PNG files on white, and a table of captions.

``multiflow prune`` and ``multiflow evaluate`` read them like any other: ``--data CACHE/data/emoji-twitter/captions.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.real.fetch import folder
from benchmarks.real.pictures import Picture, is_test, on_white, read_clipart, read_emoji, read_stamps, texts_of
from multiflow.base.files import write_atomically

SIDE = 84  # pixels: six patches of fourteen
STAMPS = 200  # of Tux Paint, for the transfer
DULL = ("symbols",)  # stamps of letters and signs: to be read, not seen
MOST_WORDS = 12  # of a caption of a stamp: longer ones tell facts
FLAG = "flag"


def emoji(cache: Path) -> tuple[Picture, ...]:
    files = {artist: folder(cache, f"emoji-datasource-{artist}") / "package" for artist in ("google", "twitter")}
    return read_emoji(folder(cache, "emojibase-data") / "package", files).found


def training(cache: Path) -> list[Picture]:
    """Return what the towers are aligned on: emoji by Google, but for the test ids, and clip art without flags."""
    art = folder(cache, "openclipart-png") / "usr/share/openclipart/png"
    drawings = folder(cache, "openclipart-svg") / "usr/share/openclipart/svg"
    clipart = [picture for picture in read_clipart(art, drawings).found if FLAG not in picture.tags]
    return [picture for picture in emoji(cache) if not is_test(picture.id)] + clipart


def unseen(cache: Path) -> list[Picture]:
    """Return the emoji that no training has seen, as Google draws them."""
    return [picture for picture in emoji(cache) if is_test(picture.id)]


def stamps(cache: Path) -> list[Picture]:
    """Return stamps of Tux Paint with a caption that says what is there, spread over their ids."""
    found = read_stamps(folder(cache, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps").found
    seen = [p for p in found if p.group not in DULL and len(p.text.split()) <= MOST_WORDS]
    step = max(1.0, len(seen) / STAMPS)
    return [seen[int(at * step)] for at in range(min(STAMPS, len(seen)))]


def write_folder(out: Path, pictures: Sequence[Picture], artist: str | None = None) -> Path:
    """Write pictures and their captions; a folder that is there is left as it is. Returns its table."""
    table = out / "captions.csv"
    if table.exists():
        return table
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["image", "caption"])
    for picture in pictures:
        name = "pictures/" + picture.id.replace("/", "--") + ".png"
        on_white(picture.also[artist] if artist else picture.path, SIDE).save(out / name)
        writer.writerows([name, text] for text in list(texts_of(picture))[:1])
    write_atomically(table, lines.getvalue())
    return table


def read_folder(table: Path) -> Iterable[tuple[Path, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield table.parent / row["image"], row["caption"]
