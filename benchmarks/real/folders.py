"""The pictures of the real world as ordinary data folders: PNG files on white, and a table with their captions.

``multiflow prune`` and ``multiflow evaluate`` read them like any other: ``--data CACHE/data/emoji-
twitter/captions.csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.real.fetch import folder
from benchmarks.real.pictures import Picture, is_test, on_white, read_clipart, read_emoji, read_stamps
from multiflow.base.files import write_atomically

SIDE = 84  # pixels: six patches of fourteen
STAMPS = 100  # of Tux Paint, for the transfer
UNSEEN = 160  # emoji, for the transfer
DULL = ("symbols",)  # stamps of letters and signs: to be read, not seen
MOST_WORDS = 12  # of a caption of a stamp: longer ones tell facts
COLUMNS = ("image", "caption", "id", "tags", "group")


def emoji(cache: Path) -> tuple[Picture, ...]:
    """Return all emoji, drawn by both artists."""
    files = {artist: folder(cache, f"emoji-datasource-{artist}") / "package" for artist in ("google", "twitter")}
    return read_emoji(folder(cache, "emojibase-data") / "package", files).found


def clipart(cache: Path) -> tuple[Picture, ...]:
    """Return clip art that shows things."""
    art = folder(cache, "openclipart-png") / "usr/share/openclipart/png"
    return read_clipart(art, folder(cache, "openclipart-svg") / "usr/share/openclipart/svg").found


def training(cache: Path) -> list[Picture]:
    """Return what the towers are aligned on: emoji by Google, but for the test ids, and clip art."""
    return _stored(
        cache, "training", lambda: [p for p in emoji(cache) if not is_test(p.id)] + list(clipart(cache)), None
    )


def unseen(cache: Path, artist: str) -> list[Picture]:
    """Return emoji that no training has seen, as an artist draws them, spread over their ids."""
    return _stored(
        cache, f"emoji-{artist}", lambda: _spread([p for p in emoji(cache) if is_test(p.id)], UNSEEN), artist
    )


def stamps(cache: Path) -> list[Picture]:
    """Return stamps of Tux Paint with a caption that says what is there, spread over their ids."""

    def read() -> list[Picture]:
        found = read_stamps(folder(cache, "tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps").found
        return _spread([p for p in found if p.group not in DULL and len(p.text.split()) <= MOST_WORDS], STAMPS)

    return _stored(cache, "stamps", read, None)


def table_of(cache: Path, name: str) -> Path:
    """Return the table of a data folder: ``training``, ``emoji-google``, ``emoji-twitter`` or ``stamps``."""
    return cache / "data" / name / "captions.csv"


def _spread(pictures: Sequence[Picture], count: int) -> list[Picture]:
    step = max(1.0, len(pictures) / count)
    return [pictures[int(at * step)] for at in range(min(count, len(pictures)))]


def _stored(cache: Path, name: str, read: Callable[[], Sequence[Picture]], artist: str | None) -> list[Picture]:
    """Return the pictures of a data folder, which is written first if it is not there."""
    table = table_of(cache, name)
    if not table.exists():
        write_folder(table, read(), artist)
    return read_folder(table)


def write_folder(table: Path, pictures: Sequence[Picture], artist: str | None = None) -> None:
    """Write pictures, those of one artist if it is named, and what is said of them; the table comes last."""
    place = table.parent / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for picture in pictures:
        file = place / (picture.id.replace("/", "--") + ".png")
        on_white(picture.also[artist] if artist else picture.path, SIDE).save(file)
        writer.writerow(
            [f"pictures/{file.name}", picture.text.lower(), picture.id, "|".join(picture.tags), picture.group]
        )
    write_atomically(table, lines.getvalue())


def read_folder(table: Path) -> list[Picture]:
    """Read what `write_folder` has written."""
    with table.open(encoding="utf-8", newline="") as file:
        return [
            Picture(
                *(row["id"], table.parent / row["image"], row["caption"]),
                tuple(tag for tag in row["tags"].split("|") if tag),
                row["group"],
            )
            for row in csv.DictReader(file)
        ]
