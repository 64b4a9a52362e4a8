"""Image-caption pairs in tar shards as img2dataset writes them for CC3M: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

The headers are indexed once; afterwards every item is two reads at known places, in any order.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import BrokenItem, Dataset, Pair, Skip
from multiflow.data.files import IMAGE_SUFFIXES, open_image

BLOCK = 512  # a tar is made of blocks of so many bytes
LAYOUT = "tar shards of img2dataset"


def open_shards(paths: Sequence[Path], source: Path) -> Dataset[Pair]:
    """Index shards. Parts that are cut off, and images without a caption, are noted as skipped."""
    keys: list[str] = []
    rows: list[tuple[int, int, int, int, int, bool]] = []  # shard, image offset and size, caption offset, size, JSON?
    skipped: list[Skip] = []
    bare = 0
    for number, path in enumerate(paths):
        for key, members in _samples(path, skipped):
            image = next((place for suffix, place in members.items() if suffix in IMAGE_SUFFIXES), None)
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
    key, members = "", dict[str, tuple[int, int]]()
    for name, place in _members(path, skipped):
        stem, suffix = os.path.splitext(name)
        if stem != key and members:
            yield key, members
            members = {}
        key = stem
        members[suffix.lower()] = place
    cut = bool(skipped) and skipped[-1].key == path.name  # the sample at a cut may lack files: no skip of its own
    if members and (_is_whole(members) or not cut):
        yield key, members


def _is_whole(members: Mapping[str, Any]) -> bool:
    return not IMAGE_SUFFIXES.isdisjoint(members) and (".txt" in members or ".json" in members)


def _members(path: Path, skipped: list[Skip]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, offset and size of each whole file in a tar; what follows a cut is noted as skipped.

    `tarfile` would do, at fourteen times the cost: seven minutes instead of half a one for CC3M's nine million members.
    """
    try:
        length = path.stat().st_size
        with open(path, "rb", buffering=0) as file:
            offset, long_name = 0, ""
            while header := _header(file, offset):
                size, start = int(header[124:136].strip(b"\0 ") or b"0", 8), offset + BLOCK
                if start + size > length:
                    raise ValueError("a file in it is not whole")
                offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
                kind = header[156:157]
                if kind in b"xL":  # the name of the next member, too long for its header
                    file.seek(start)
                    long_name = _long_name(kind, file.read(size)) or long_name
                    continue
                if kind in b"0\0":
                    yield long_name or _short_name(header), (start, size)
                long_name = ""
    except (OSError, ValueError) as error:
        skipped.append(Skip(path.name, f"the shard is cut or damaged ({error}); what comes before is used"))


def _header(file: io.RawIOBase, offset: int) -> bytes | None:
    """Read the header at an offset; None at the end of the archive, which is a block of zeros."""
    file.seek(offset)
    header = file.read(BLOCK) or b""
    if header == bytes(BLOCK):
        return None
    if len(header) < BLOCK or header[257:262] != b"ustar":
        raise ValueError("it has no end" if len(header) < BLOCK else "not a tar header")
    return header


def _short_name(header: bytes) -> str:
    """Return the name that a header holds, with its prefix in the POSIX format."""
    name = header[:100].partition(b"\0")[0].decode()
    prefix = header[345:500].partition(b"\0")[0].decode() if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _long_name(kind: bytes, content: bytes) -> str:
    """Return the name in an extended header: GNU's (L) is all name, POSIX's (x) has lines ``LENGTH path=NAME``."""
    if kind == b"L":
        return content.partition(b"\0")[0].decode()
    return next((line.partition(b"=")[2].decode() for line in content.split(b"\n") if b" path=" in line), "")


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
