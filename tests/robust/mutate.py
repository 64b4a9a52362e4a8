"""Damage to files, as a function of a random generator: bits, cuts, other types, other files, no files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

LARGE = 2**33  # bytes: more than may be held
DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
VALUES = (
    *(None, True, 0, -1, 5, 2**63, 10**30, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "\ud800", "a\0b", "../../x", "/etc/passwd", "{0.__class__}", "{}", "%s", "\x1b[2J", "\U0001f600"),
    *("<script>x</script>", "a/b\nc: d"),
    *("x" * 5_000, [], {}, [[]], [None], {"": None}, DEEP, ["a", 5], {"a": 5}, [1e30, -1e30, 0, 0]),
)
TEXTS = (
    *(b"&a [*a]", b"!!int x", b"2001-99-99", b"*nothing", b"!!python/object/apply:os.getcwd []", b"<<: *a", b"${x}"),
    *(b"9" * 5_000, b"[" * 5_000, b'{"a":' * 3_000, b'"\\ud800"', b"\\u0000", b"NaN", b"1e999", b"-1", b"-" * 12),
    *(b"\xff\xfe", b"\0\0\0\0", b"\xef\xbb\xbf", b'"', b"\t", b"\r\n", b","),
    *(b"\x1f\x8b\x08", b"PK\x03\x04", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"),
)


def damage(folder: Path, random: Random) -> str:
    """Damage one to three files below a folder; return what was done."""
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        files = [path for path in files if path.stat().st_size < LARGE]
        if not files:
            break
        # A text that describes others matters more than each of the pictures that it describes.
        weights = [4 if path.suffix in (".json", ".jsonl", ".yaml", ".txt", ".csv", ".tsv") else 1 for path in files]
        path = random.choices(files, weights)[0]
        ways: list[Callable[[Path, Random], None]] = [bits, bits, cut, drop, double, insert, overwrite, number, text]
        ways += [whole] + [structure] * 8 * (path.suffix in (".json", ".jsonl"))
        way = random.choice(ways)
        way(path, random)
        done.append(f"{way.__name__} {path.relative_to(folder)}")
    return ", ".join(done)


def bits(path: Path, random: Random) -> None:
    """Flip one to eight bits."""
    data = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 8) if data else 0):
        data[_place(data, random)] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def cut(path: Path, random: Random) -> None:
    """Cut the end off."""
    data = path.read_bytes()
    path.write_bytes(data[: random.randint(0, len(data))])


def drop(path: Path, random: Random) -> None:
    """Leave a part out."""
    data = path.read_bytes()
    begin = _place(data, random)
    path.write_bytes(data[:begin] + data[begin + random.randint(1, 64) :])


def double(path: Path, random: Random) -> None:
    """Repeat a part, once or a few thousand times."""
    data = path.read_bytes()
    begin = _place(data, random)
    part = data[begin : begin + random.randint(1, 64)]
    path.write_bytes(data[:begin] + part * random.choice((2, 2, 3, 3_000)) + data[begin + len(part) :])


def insert(path: Path, random: Random) -> None:
    """Put random bytes in."""
    data = path.read_bytes()
    begin = _place(data, random)
    path.write_bytes(data[:begin] + random.randbytes(random.randint(1, 600)) + data[begin:])


def overwrite(path: Path, random: Random) -> None:
    """Put the same byte in the place of a part."""
    data = bytearray(path.read_bytes())
    begin, length = _place(data, random), random.choice((1, 2, 4, 8, 512))
    data[begin : begin + length] = bytes([random.choice((0, 0x20, 0x2D, 0x37, 0x7F, 0x80, 0xFF))]) * length
    path.write_bytes(data)


def number(path: Path, random: Random) -> None:
    """Put a number of two, four or eight bytes in the place of others."""
    data = bytearray(path.read_bytes())
    begin, length = _place(data, random), random.choice((2, 4, 8))
    value = random.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    data[begin : begin + length] = (value % 256**length).to_bytes(length, random.choice(("little", "big")))
    path.write_bytes(data)


def text(path: Path, random: Random) -> None:
    """Put a hostile piece of text in, between words or in the place of one."""
    data = path.read_bytes()
    begin = _place(data, random)
    end = begin if random.random() < 0.5 else begin + random.randint(1, 12)
    path.write_bytes(data[:begin] + random.choice(TEXTS) + data[end:])


def whole(path: Path, random: Random) -> None:
    """Put something else in the place of a file."""
    other = [other for other in path.parent.iterdir() if other.is_file() and other != path]
    kind = random.choice(("nothing", "empty", "folder", "pipe", "device", "loop", "large", "other", "noise"))
    size = path.stat().st_size
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "large":
        _large(path)
    elif kind == "other" and other:
        source = random.choice(sorted(other))
        if source.stat().st_size < LARGE:
            shutil.copy(source, path)
        else:
            _large(path)  # the same content; copied, its zeros would be written one by one, which takes half a minute
    elif kind == "noise":
        path.write_bytes(random.randbytes(size))


def _large(path: Path) -> None:
    """Make a file of zeros that takes no place on the disk."""
    with path.open("wb") as file:
        file.truncate(LARGE)


def structure(path: Path, random: Random) -> None:
    """Change the structure of a JSON file: another value, a key that is missing, renamed or doubled."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        line = random.randrange(len(lines))
        content = json.loads(lines[line])
    except (ValueError, RecursionError):
        return bits(path, random)
    holder: dict[str, Any] = {"": content}
    places: list[tuple[Any, Any]] = [(holder, "")]
    for inner, key in places:  # grows while it is walked
        held = inner[key]
        if isinstance(held, dict | list) and len(places) < 10_000:
            places += [(held, k) for k in (held if isinstance(held, dict) else range(len(held)))]
    inner, key = random.choice(places)
    match random.choice(("value", "value", "value", "delete", "rename", "many")):
        case "delete" if inner is not holder:
            del inner[key]
        case "rename" if isinstance(inner, dict) and inner is not holder:
            inner[random.choice(("", "x", "a\0b", str(key).upper()))] = inner.pop(key)
        case "many" if isinstance(inner[key], list):
            inner[key] = inner[key] * 50
        case _:
            inner[key] = random.choice(VALUES)
    with contextlib.suppress(RecursionError):
        lines[line] = json.dumps(holder[""])
    path.write_text("\n".join(lines), encoding="utf-8")
    return None


def _place(data: bytes | bytearray, random: Random) -> int:
    """Return where to begin: often near the start, where headers are."""
    if not data:
        return 0
    return random.randrange(min(len(data), 600)) if random.random() < 0.5 else random.randrange(len(data))
