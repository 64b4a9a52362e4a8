"""Image-caption pairs in tar shards as img2dataset writes them for CC3M: ``KEY.jpg``, ``KEY.txt``, ``KEY.json``.

The headers are indexed once; afterwards every item is two reads at known places, in any order. `tarfile` would do, at
fourteen times the cost: seven minutes instead of half a one for CC3M's nine million members.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.base.files import MOST_TEXT, open_regular, parse_json
from multiflow.data.dataset import BrokenItem, Dataset, Pair, Skip
from multiflow.data.images import IMAGE_SUFFIXES, MOST_BYTES, open_image
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, of_files

BLOCK = 512  # a tar is made of blocks of so many bytes
PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""First bytes of a file that is no plain tar -> what it is packed with."""


LEFT_OUT = {b"1": "it is a link, which is not followed", b"2": "it is a link, which is not followed"}
LEFT_OUT |= dict.fromkeys([b"3", b"4", b"6"], "it is a device or a pipe")
LEFT_OUT |= {b"S": "it is a sparse file, which is not read"}
LOOKED_AT = 2**24
"""Bytes behind the end of a tar that are looked at for another one: tars are padded with zeros, by far less."""


class Member(NamedTuple):
    """Where a file lies in a shard."""

    offset: int
    size: int


class Sidecar(msgspec.Struct):
    """What img2dataset writes beside an image."""

    caption: str


def _open(place: Place) -> Dataset[Pair]:
    """Index shards. Parts that are cut off, and images without a caption, are noted as skipped."""
    paths = sorted(place.path.glob("*.tar")) if place.is_folder else [place.path]
    keys: list[str] = []
    rows: list[tuple[int, int, int, int, int, bool]] = []  # shard, image offset and size, caption offset, size, JSON?
    skipped: list[Skip] = []
    images = captions = 0
    for number, path in enumerate(paths):
        for key, members in _samples(path, skipped).items():
            pictures = [of for suffix, of in members.items() if suffix in IMAGE_SUFFIXES]
            image = pictures[0] if pictures else None
            if len(pictures) > 1:
                skipped.append(Skip(f"{path.name}/{key}", f"it has {len(pictures)} images; the first is used"))
            caption = members.get(".txt", members.get(".json"))
            images, captions = images + (image is not None), captions + (caption is not None)
            if image is None or caption is None:
                skipped.append(Skip(f"{path.name}/{key}", "no image" if image is None else "no caption"))
                continue
            keys.append(key)
            rows.append((number, *image, *caption, ".txt" not in members))
    if not rows and images and not captions:
        raise MultiflowError(
            f"captions are missing: '{place.path}' holds {images} images and no caption; "
            "expected KEY.txt or KEY.json beside each KEY.jpg, as img2dataset writes them"
        )
    if not rows:
        reason = f": {skipped[0].key}: {skipped[0].reason}" if skipped else ""
        raise MultiflowError(f"no image-caption pair can be read from the tar shards in '{place.path}'{reason}")
    ends = np.cumsum([len(key) for key in keys])
    read = partial(_read, tuple(map(str, paths)), "".join(keys), ends, np.array(rows, np.int64))
    return Dataset("pairs", "tar shards of img2dataset", str(place.path), len(rows), read, skipped=tuple(skipped))


def _samples(path: Path, skipped: list[Skip]) -> dict[str, dict[str, Member]]:
    """Return key -> suffix -> place of each sample of a shard; the files of a sample may lie anywhere in it."""
    samples: dict[str, dict[str, Member]] = {}
    cut: str | None = None
    try:
        with open_regular(path) as file:
            for name, member in _members(file):
                if isinstance(member, str):
                    skipped.append(Skip(f"{path.name}/{name}", member))
                    continue
                cut, suffix = os.path.splitext(name)
                sample, suffix = samples.setdefault(cut, {}), suffix.lower()
                if suffix in sample:
                    skipped.append(Skip(f"{path.name}/{name}", "the name comes twice; the later file is used"))
                sample[suffix] = member
    except (OSError, ValueError) as error:
        skipped.append(Skip(path.name, f"{error}; what comes before is used" if samples else str(error)))
        if cut is not None and not _is_whole(samples[cut]):  # the sample at a cut may lack files: no skip of its own
            del samples[cut]
    return samples


def _is_whole(members: dict[str, Member]) -> bool:
    return not IMAGE_SUFFIXES.isdisjoint(members) and (".txt" in members or ".json" in members)


def _members(file: FileIO) -> Iterator[tuple[str, Member | str]]:
    """Yield name and place of each regular file in a tar; of what is none and no folder, why it is left out.

    Raises:
        ValueError: the tar is cut or damaged, or packed; what was yielded before is whole.
    """
    offset, long_name, length = 0, "", os.fstat(file.fileno()).st_size
    while header := _header(file, offset):
        size, start = _number(header[124:136]), offset + BLOCK
        if start + size > length:
            raise ValueError(f"the shard is cut or damaged (a file in it has {size} bytes, {length - start} are there)")
        offset = start + (size + BLOCK - 1) // BLOCK * BLOCK
        kind = header[156:157]
        if kind in b"xL":  # the name of the next member, too long for its header
            if size > MOST_TEXT:
                raise ValueError(f"the shard is damaged (a name in it has {size} bytes)")
            file.seek(start)
            long_name = _long_name(kind, file.read(size)) or long_name
            continue
        name = long_name or _short_name(header)
        if kind in LEFT_OUT:
            yield name, LEFT_OUT[kind]
        elif kind in b"07" or (kind == b"\0" and not name.endswith("/")):  # that is a folder of the oldest tars
            yield name, Member(start, size)
        long_name = ""
    file.seek(offset)
    if file.read(LOOKED_AT).strip(b"\0"):
        raise ValueError(f"the shard ends at byte {offset} of {length}, and what is joined behind it is not read")


def _header(file: FileIO, offset: int) -> bytes | None:
    """Read the header at an offset; None at the end of the archive, which is a block of zeros.

    Raises:
        ValueError: there is no header whose checksum is right.
    """
    file.seek(offset)
    header = file.read(BLOCK)
    if header == bytes(BLOCK):
        return None
    if not offset and (packed := next((how for magic, how in PACKED.items() if header.startswith(magic)), None)):
        raise ValueError(f"the file is packed with {packed}; unpack it to a plain tar, which can be read in any order")
    if len(header) < BLOCK:
        raise ValueError("the shard is cut or damaged (it has no end)")
    # The checksum is the sum of all bytes, its own field as blanks. Adler-32 holds 1 + that sum in its lower half,
    # modulo 65,521, and costs a fifteenth of sum(). Old programs added signed bytes.
    blanked = header[:148] + b" " * 8 + header[156:]
    wrong = _number(header[148:156]) + 1 - (zlib.adler32(blanked) & 0xFFFF)
    if wrong % 65521 and (wrong + 256 * sum(byte > 127 for byte in blanked)) % 65521:
        raise ValueError(f"the shard is cut or damaged (the header at byte {offset} has a wrong checksum)")
    return header


def _number(digits: bytes) -> int:
    """Return the number in a field of a header: octal digits, or binary where it is larger than these can say."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    found = re.fullmatch(rb"[ \0]*([0-7]*)[ \0]*", digits)
    if found is None:
        raise ValueError(f"the shard is cut or damaged (a size in it is {digits!r})")
    return int(found[1] or b"0", 8)


def _short_name(header: bytes) -> str:
    name, prefix = (_text(part.partition(b"\0")[0]) for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _long_name(kind: bytes, content: bytes) -> str:
    """Return the name in an extended header: GNU's (L) is all name, POSIX's (x) has records, one of them ``path``.

    Raises:
        ValueError: the records are damaged, or say of the next member what its place and size do not.
    """
    if kind == b"L":
        return _text(content.partition(b"\0")[0])
    name = ""
    for key, value in _records(content):
        if key == b"path":
            name = _text(value)
        elif key == b"size" or key.startswith(b"GNU.sparse."):
            raise ValueError("the shard has a member that is sparse or of 8 GB; write it again without")
    return name


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each record ``LENGTH KEY=VALUE\\n``; the length counts all of it."""
    while content.strip(b"\0"):
        digits, _, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, between, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not between or content[length - 1 : length] != b"\n":
            raise ValueError(f"the shard is damaged (a record in it is {content[:40]!r})")
        yield key, value
        content = content[length:]


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _read(shards: tuple[str, ...], keys: str, ends: np.ndarray, rows: np.ndarray, index: int) -> Pair:
    number, offset, size, text_offset, text_size, as_json = rows[index].tolist()
    key = f"{os.path.basename(shards[number])}/{keys[ends[index - 1] if index else 0 : ends[index]]}"
    if size > MOST_BYTES or text_size > MOST_TEXT:
        raise BrokenItem(key, f"its image has {size} bytes, its caption {text_size}, which is too large")
    try:
        with open_regular(shards[number]) as file:
            file.seek(offset)
            data = file.read(size)
            file.seek(text_offset)
            said = file.read(text_size)
    except OSError as error:
        raise BrokenItem(key, error.strerror or str(error)) from error
    if (len(data), len(said)) != (size, text_size):
        raise BrokenItem(key, "the shard has become shorter since it was opened")
    try:
        text = said.decode("utf-8-sig")
        caption = msgspec.convert(parse_json(text, key), Sidecar).caption if as_json else text
    except (ValueError, MultiflowError) as error:
        raise BrokenItem(key, "its caption is not UTF-8 text, or its JSON has no 'caption'") from error
    if not caption.strip():
        raise BrokenItem(key, "its caption is empty")
    return Pair(open_image(data, key), (caption.strip(),), key)


LAYOUTS.add(
    "shards",
    DataLayout(
        "*.tar (shards of img2dataset, as for CC3M)", of_files(".tar"), _open, companions=["*_stats.json"], order=1
    ),
)
