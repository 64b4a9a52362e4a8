"""Pictures with words, out of public packages: emoji by two artists, clip art, stamps of a paint program.

Every reader returns `Pictures`: what is usable, and how many were left out for which reason. None of them is part of
the package, nothing of theirs is committed, and pixels are decoded by Pillow alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from multiflow.base.errors import MultiflowError

EMOJI_VERSION = "17."
LEFT_OUT = ("component", "flags")  # parts of emoji, and what is recognised by heart alone
GENDERED = re.compile(r"^(man|woman|men|women)\b(?!.*\b(dancing|couple|holding))|: (man|woman)\b")
CLOCKS = re.compile(r"o.clock|-thirty$")
PUBLIC = re.compile(r"publicdomain|public domain", re.IGNORECASE)
JUNK = re.compile(r"hash\(0x|^untitled|^clipart$|\bcollection\b|^part of\b|^various\b|^unsorted$|^hash$", re.IGNORECASE)
FLAG = "flag"
SHARED = 3  # pictures at most that may share a title: one that more have says nothing of them
MOST_PIXELS = 8_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHOWN = (
    "animals",
    "buildings",
    "containers",
    "education",
    "electronics",
    "food",
    "office",
    "people",
    "plants",
    "recreation",
    "science",
    "tools",
    "transportation",
)  # folders of clip art that show things, not signs, flags, maps and patterns
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Picture:
    """A picture and what is said of it."""

    id: str
    path: Path
    text: str  # what it is called
    tags: tuple[str, ...] = ()
    group: str = ""
    also: Mapping[str, Path] = field(default_factory=dict)  # the same thing by other artists: name -> picture


@dataclass(frozen=True)
class Pictures:
    """What a reader found, in the order of the ids, and what it left out: reason -> how many."""

    found: tuple[Picture, ...]
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.found)


def read_emoji(data: Path, vendors: Mapping[str, Path]) -> Pictures:
    """Read emoji with label, tags, group and the pictures of all artists.

    Args:
        data: unpacked ``emojibase-data`` (its folder ``package``).
        vendors: artist -> unpacked ``emoji-datasource-ARTIST`` (its folder ``package``).

    Raises:
        MultiflowError: another version of the data, or a file that is missing or damaged.
    """
    version = str(_json(data / "package.json").get("version"))
    if not version.startswith(EMOJI_VERSION):
        raise MultiflowError(f"'{data}' is emojibase-data {version}; expected {EMOJI_VERSION}x, whose labels were read")
    groups = _json(data / "meta" / "groups.json")["groups"]
    entries = _json(data / "en" / "data.json")
    files = {artist: _vendor_files(folder, artist) for artist, folder in vendors.items()}
    found, out = [], Counter[str]()
    for entry in sorted(entries, key=lambda entry: str(entry.get("hexcode"))):
        label, tags = str(entry.get("label") or ""), tuple(entry.get("tags") or ())
        group = str(groups.get(str(entry.get("group")), "component"))
        pictures = {artist: of.get(_code(entry["hexcode"])) for artist, of in files.items()}
        if reason := _emoji_reason(label, tags, group, [path is not None for path in pictures.values()]):
            out[reason] += 1
            continue
        first, *_ = paths = {artist: path for artist, path in pictures.items() if path is not None}
        found.append(Picture(entry["hexcode"], paths[first], label, tags, group, paths))
    return Pictures(tuple(found), out)


def _emoji_reason(label: str, tags: Sequence[str], group: str, drawn: Sequence[bool]) -> str | None:
    if group in LEFT_OUT:
        return f"of the group {group}"
    if CLOCKS.search(label):
        return "a clock face"
    if GENDERED.search(label):
        return "a man or woman of what is there as a person"
    if not label or not tags:
        return "without label or tags"
    return None if all(drawn) else "without the picture of an artist"


def _vendor_files(folder: Path, artist: str) -> dict[str, Path]:
    pictures = folder / "img" / artist / "64"
    found = {_code(path.stem): path for path in sorted(pictures.glob("*.png"))}
    if not found:
        raise MultiflowError(f"no pictures lie in '{pictures}'; expected emoji-datasource-{artist} 16.0.0, unpacked")
    return found


def _code(name: str) -> str:
    """Return a sequence of code points as both packages agree on it: without the sign that asks for colour."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MultiflowError(f"cannot read '{path}' ({error}); fetch the package again") from error


def read_clipart(pngs: Path, svgs: Path) -> Pictures:
    """Read clip art with title and tags: in the public domain, each content once, with titles that tell something.

    Args:
        pngs: ``usr/share/openclipart/png`` of ``openclipart-png``.
        svgs: ``usr/share/openclipart/svg`` of ``openclipart-svg``, whose metadata say title, tags and licence.
    """
    if not svgs.is_dir() or not pngs.is_dir():
        raise MultiflowError(f"'{pngs}' and '{svgs}' are wanted, and one is no folder; fetch openclipart-png and -svg")
    out, seen, candidates = Counter[str](), set[str](), []
    for svg in sorted(svgs.rglob("*.svg")):
        id = svg.relative_to(svgs).with_suffix("").as_posix()
        png = pngs / f"{id}.png"
        said = _metadata(svg) if id.split("/")[0] in SHOWN else ("", (), "")
        if id.split("/")[0] not in SHOWN:
            out["of signs, flags, maps and patterns"] += 1
        elif said is None or not png.is_file():
            out["without picture or readable metadata"] += 1
        elif FLAG in said[1]:
            out["a flag"] += 1
        elif not PUBLIC.search(said[2]):
            out["not said to be in the public domain"] += 1
        elif not re.search("[A-Za-z]{3}", said[0]) or JUNK.search(said[0]):
            out["without a title that tells something"] += 1
        elif not _is_fit(png):
            out["no picture, or one of more than 8 million pixels"] += 1
        elif (content := hashlib.sha256(png.read_bytes()).hexdigest()) in seen:
            out["the same picture again"] += 1
        else:
            seen.add(content)
            candidates.append(Picture(id, png, said[0], said[1], id.split("/")[0]))
    shared = Counter(picture.text.lower() for picture in candidates)
    found = [picture for picture in candidates if shared[picture.text.lower()] <= SHARED]
    out[f"a title that more than {SHARED} share"] += len(candidates) - len(found)
    return Pictures(tuple(found), out)


def _is_fit(path: Path) -> bool:
    """Tell by its head whether a file is a PNG of a size that one decodes in passing."""
    width, height = png_size(path)
    return 0 < width * height <= MOST_PIXELS


def png_size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG file, and nothing for any other."""
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError:
        return 0, 0
    return struct.unpack(">II", head[16:24]) if head.startswith(SIGNATURE) and len(head) == 24 else (0, 0)


def _metadata(svg: Path) -> tuple[str, tuple[str, ...], str] | None:
    """Return title, tags and licence of a drawing; None if it is no readable XML up to there."""
    try:
        for _, element in ET.iterparse(svg):
            if element.tag.rpartition("}")[2] == "metadata":
                title, tags, licence = "", [], ""
                for part in element.iter():
                    name, text = part.tag.rpartition("}")[2], " ".join((part.text or "").split())
                    if name == "title" and "purl.org/dc" in part.tag and not title:
                        title = text
                    elif name == "li" and text and not JUNK.search(text):
                        tags.append(text.replace("_", " ").lower())
                    elif name == "license":
                        licence = " ".join(part.attrib.values())
                return _words(title), tuple(dict.fromkeys(tags)), licence
    except (ET.ParseError, OSError, ValueError, LookupError):
        return None
    return None


def _words(title: str) -> str:
    """Return a title in words: without who drew it, numbers and signs that join words."""
    title = re.sub(r"^clipart by [\w ]+ - ", "", title, flags=re.IGNORECASE)
    return " ".join(re.sub(r"[_\-]+|\d+", " ", title).split())


def read_stamps(folder: Path) -> Pictures:
    """Read the stamps of Tux Paint that are PNG files, with their English captions, each caption once.

    Args:
        folder: ``usr/share/tuxpaint/stamps`` of ``tuxpaint-stamps-default``.
    """
    if not folder.is_dir():
        raise MultiflowError(f"'{folder}' is no folder; fetch tuxpaint-stamps-default")
    found, out, seen = [], Counter[str](), set[str]()
    for text in sorted(folder.rglob("*.txt")):
        picture = text.with_suffix(".png")
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        caption = lines[0].strip().rstrip(".") if lines and ".utf8=" not in lines[0] else ""
        if not picture.is_file() or not _is_fit(picture):
            out["without a picture in pixels"] += 1
        elif not caption:
            out["without an English caption"] += 1
        elif caption.lower() in seen:
            out["a caption that was there before"] += 1
        else:
            seen.add(caption.lower())
            id = text.relative_to(folder).with_suffix("").as_posix()
            found.append(Picture(id, picture, caption, (), id.split("/")[0]))
    return Pictures(tuple(found), out)


def on_white(path: Path, side: int) -> Image.Image:
    """Return a picture in the middle of a white square of this side, whatever its mode and shape.

    Raises:
        MultiflowError: the file is no picture, or larger than any picture is.
    """
    if not _is_fit(path):
        raise MultiflowError(
            f"'{path}' is no PNG of at most {MOST_PIXELS} pixels ({png_size(path)}); fetch its package again"
        )
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MultiflowError(f"cannot read the picture '{path}' ({error}); fetch its package again") from error
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    ground = Image.new("RGBA", (side, side), WHITE)
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    ground.alpha_composite(small, ((side - width) // 2, (side - height) // 2))
    return ground.convert("RGB")


def is_test(id: str, share: float = 0.2) -> bool:
    """Tell whether an id belongs to the test half of a split: by its hash, so that it is the same everywhere."""
    return int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) < share * 2**32


def texts_of(picture: Picture) -> Iterator[str]:
    """Give what a picture may be called: its name, and its name with what it is tagged with."""
    name = picture.text.lower()
    yield name
    others = [tag for tag in picture.tags if tag not in name]
    if others:
        yield f"{name}, {', '.join(others[:5])}"
