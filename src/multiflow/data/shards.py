"""Image-caption pairs in tar shards as img2dataset writes them for CC3M: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

The headers are indexed once with `tarfile`; afterwards every item is one seek and one read, in any order.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from multiflow.data.base import BrokenItem, Dataset, Pair, Skip
from multiflow.data.files import is_image, open_image
from multiflow.errors import MultiflowError

LAYOUT = "tar shards of img2dataset"


def open_shards(paths: Sequence[Path], source: Path) -> Dataset[Pair]:
    """Index shards. Parts that are cut off, and images without a caption, are noted as skipped."""
    keys: list[str] = []
    rows: list[tuple[int, int, int, int, int, bool]] = []  # shard, image offset and size, caption offset, size, JSON?
    skipped: list[Skip] = []
    bare = 0
    for number, path in enumerate(paths):
        for key, members in _samples(path, skipped):
            image = next((place for name, place in members.items() if is_image(name)), None)
            caption = members.get(".txt", members.get(".json"))
            if image is None or caption is None:
                bare += image is not None
                skipped.append(Skip(f"{path.name}/{key}", "no image" if image is None else "no caption"))
                continue
            keys.append(key)
            rows.append((number, *image, *caption, ".txt" not in members))
    if not rows and bare:
        raise MultiflowError(
            f"captions are missing: '{source}' holds {bare} images and no caption; "
            "expected KEY.txt or KEY.json beside each KEY.jpg, as img2dataset writes them"
        )
    if not rows:
        reason = f": {skipped[0].key}: {skipped[0].reason}" if skipped else ""
        raise MultiflowError(f"no image-caption pair can be read from the tar shards in '{source}'{reason}")
    read = partial(_read, tuple(map(str, paths)), np.array(keys), np.array(rows, np.int64))
    return Dataset("pairs", LAYOUT, str(source), len(rows), read, skipped=tuple(skipped))


def _samples(path: Path, skipped: list[Skip]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield each sample of a shard: its key, and suffix -> (offset, size) of its members."""
    key, members = "", {}
    for name, place in _members(path, skipped):
        stem, suffix = os.path.splitext(name)
        if stem != key and members:
            yield key, members
            members = {}
        key = stem
        members[suffix.lower()] = place
    if members:
        yield key, members


def _members(path: Path, skipped: list[Skip]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, offset and size of each whole file in a tar; what follows a cut is noted as skipped."""
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isfile():
                    yield member.name, (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        skipped.append(Skip(path.name, f"the shard is cut or damaged ({error}); what comes before is used"))


def _read(shards: tuple[str, ...], keys: np.ndarray, rows: np.ndarray, index: int) -> Pair:
    number, offset, size, text_offset, text_size, as_json = rows[index].tolist()
    key = f"{os.path.basename(shards[number])}/{keys[index]}"
    try:
        with open(shards[number], "rb") as file:
            file.seek(offset)
            data = file.read(size)
            file.seek(text_offset)
            text = file.read(text_size)
        caption = json.loads(text)["caption"] if as_json else text.decode()
    except OSError as error:
        raise BrokenItem(key, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenItem(key, "its caption is not UTF-8 text, or its JSON has no 'caption'") from error
    if not isinstance(caption, str) or not caption.strip():
        raise BrokenItem(key, "its caption is empty")
    return Pair(open_image(data, key), (caption.strip(),), key)
