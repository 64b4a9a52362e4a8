"""Kinds of damaged and hostile data, each tried over layouts, fields and formats rather than on one example."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import shutil
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from multiflow.base.errors import MultiflowError
from multiflow.data import BrokenItem, open_data, to_pixels
from multiflow.data.images import FORMATS, decode, load_image
from multiflow.data.text import build_word_tokenizer, load_tokenizer
from tests.data.worlds import png, samples, write_images, write_json, write_shard
from tests.robust.fuzz import outcome, targets
from tests.robust.mutate import VALUES

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
captions = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\t\0"), min_size=1, max_size=40)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a parsed JSON file."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the content with another value at a place."""
    if not path:
        return value
    changed = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


LAYOUTS = (
    "karpathy",
    "list",
    "conversations",
    "messages",
    "mapping",
    "visual-genome",
    "region-list",
    "vqa",
    "question-list",
    "processor",
    "config-json",
)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore")
def test_any_value_in_any_field_of_any_json_file(name: str, tmp_path: Path) -> None:
    target = targets()[name]
    target.make(tmp_path / "valid")
    for path in sorted((tmp_path / "valid").rglob("*.json")):
        whole = json.loads(path.read_text())
        for number, place in enumerate(places(whole)):
            if any(isinstance(key, int) and key > 1 for key in place):
                continue
            values = VALUES if len(place) < 4 else VALUES[number % 3 :: 3]
            for value in values:
                path.write_text(json.dumps(put(whole, place, value)))
                wrong = outcome(target, tmp_path / "valid")
                assert wrong is None, (path.name, place, value, wrong)
        path.write_text(json.dumps(whole))


@quick
@given(texts=st.lists(captions, min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_captions_are_read_as_they_were_written(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("captions")
    names = [f"{i}.png" for i in range(len(texts))]
    write_images(folder, names)
    rows = list(zip(names, texts, strict=True))
    kept = {name: (text.strip(),) for name, text in rows if text.strip()}

    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    (folder / "captions.txt").write_text("".join(f"{name}\t{text}\n" for name, text in rows), encoding="utf-8")
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"file_name": n, "text": t}) for n, t in rows))
    write_json(folder / "a.json", [{"image": name, "caption": text} for name, text in rows])
    write_json(folder / "captions.json", dict(rows))
    members = {
        f"{name[:-4]}.{suffix}": data
        for name, text in rows
        for suffix, data in (("png", png(0)), ("txt", text.encode()))
    }
    write_shard(folder / "a.tar", members)
    for source in ("a.csv", "captions.txt", "a.jsonl", "a.json", "captions.json", "a.tar"):
        if not kept:
            with pytest.raises(MultiflowError):
                data = open_data(folder / source)
                data[0]
            continue
        data = open_data(folder / source)
        found = {}
        for index in range(len(data)):
            with suppress(BrokenItem):  # a caption of a shard that is blank
                found[f"{Path(data[index].key).stem}.png"] = data[index].captions
        assert found == kept, source


@quick
@given(open_at=st.sets(st.integers(0, 5)), quote=st.sampled_from(['"', 'one "two', '"one" two']))
def test_a_quote_that_does_not_close_costs_its_own_row(
    open_at: set[int], quote: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("quotes")
    names = [f"{i}.png" for i in range(6)]
    write_images(folder, names)
    lines = [f'{name},"{quote}' if i in open_at else f'{name},"caption, {i}"' for i, name in enumerate(names)]
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(lines))
    if len(open_at) == 6:
        return
    data = open_data(folder)
    found = {data[i].key: data[i].captions for i in range(len(data))}
    assert all(found[name] == (f"caption, {i}",) for i, name in enumerate(names) if i not in open_at)
    assert len(found) + len(data.skipped) == 6


def test_a_quoted_caption_may_have_several_lines(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "captions.csv").write_text('image,caption\na.png,"one\ntwo, three"\nb.png,four\n')
    assert [item.captions for item in open_data(tmp_path)] == [("one\ntwo, three",), ("four",)]


@quick
@given(
    names=st.lists(st.text("ab/.é ", min_size=1, max_size=150), min_size=1, max_size=5, unique=True),
    form=st.sampled_from([0, 1, 2]),
)
def test_a_tar_has_the_members_that_tarfile_finds(
    names: list[str], form: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from multiflow.data.layouts.shards import _samples  # the index alone: the data set leaves out what is no pair

    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = number * 300
            try:
                tar.addfile(member, io.BytesIO(b"x" * member.size))
            except ValueError:  # too long for the oldest format
                return
    with tarfile.open(path) as tar:
        wanted = {(member.name, member.offset_data, member.size) for member in tar if member.isreg()}
    skipped: list[Any] = []
    found = {(f"{k}{s}", *of) for k, members in _samples(path, skipped).items() for s, of in members.items()}
    assert {(size, offset) for _, offset, size in wanted} >= {(size, offset) for _, offset, size in found}
    assert not [skip for skip in skipped if "comes twice" not in skip.reason]
    assert len(found) + len(skipped) == len(wanted)


def _tar(folder: Path, change: Any) -> Path:
    path = write_shard(folder / "a.tar", samples(range(4)))
    data = bytearray(path.read_bytes())
    at = data.index(b"000000002.txt")
    change(data, at)
    path.write_bytes(data)
    return path


def _resum(data: bytearray, at: int) -> None:
    """Write the right checksum into a header."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


@pytest.mark.parametrize(
    "size",
    [b"-1\0", b"-0000000512\0", b"00000000+12\0", b"9\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"],
)
@pytest.mark.parametrize("summed", [True, False])
def test_a_size_in_a_tar_that_cannot_be(tmp_path: Path, size: bytes, summed: bool) -> None:
    def change(data: bytearray, at: int) -> None:
        data[at + 124 : at + 136] = size.ljust(12, b"\0")
        if summed:
            _resum(data, at)

    data = open_data(_tar(tmp_path, change))
    assert [item.captions[0] for item in data] == ["picture 0", "picture 1"]
    assert [skip.key for skip in data.skipped] == ["a.tar"]


def test_every_bit_of_a_tar_header_is_checked(tmp_path: Path) -> None:
    whole = _tar(tmp_path, lambda data, at: None).read_bytes()
    at = whole.index(b"000000002.txt")
    silent = 0
    for bit in range(0, 512 * 8, 7):
        changed = bytearray(whole)
        changed[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.tar").write_bytes(changed)
        data = open_data(tmp_path / "a.tar")
        silent += not data.skipped and not 148 <= bit // 8 < 156  # the sum itself may end in a zero or a blank
    assert silent == 0


@pytest.mark.parametrize(("kind", "mode"), [("gzip", "w:gz"), ("bzip2", "w:bz2"), ("xz", "w:xz")])
def test_a_packed_tar_is_called_by_its_name(tmp_path: Path, kind: str, mode: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("x"))
    with pytest.raises(MultiflowError, match=f"packed with {kind}"):
        open_data(tmp_path / "a.tar")


def test_files_of_a_sample_may_lie_anywhere_in_a_shard(tmp_path: Path) -> None:
    members = samples(range(3))
    write_shard(tmp_path / "a.tar", dict(sorted(members.items(), key=lambda item: item[0][::-1])))
    data = open_data(tmp_path)
    assert sorted(item.captions[0] for item in data) == ["picture 0", "picture 1", "picture 2"]
    assert not data.skipped


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_photos_stand_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.fromarray(
        np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    ).convert("RGB")
    methods = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(getattr(Image.Transpose, methods[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    found = np.asarray(decode(load_image(str(tmp_path / f"a.{suffix}"), "a")))
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - np.asarray(upright)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(decode(load_image(str(tmp_path / f"a.{suffix}"), "a")))
    assert (pixels[:, :, 0] == np.rint(levels / 257)).all()
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize(("scale", "kind"), [(1, np.float32), (255, np.float32), (255, np.int32), (65535, np.int32)])
def test_float_and_long_grey_levels(scale: float, kind: Any) -> None:
    share = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(decode(Image.fromarray((share * scale).astype(kind))))[:, :, 0]
    assert np.abs(pixels - share * 255).max() <= (1 if kind == np.int32 else 0.51)


@pytest.mark.parametrize("levels", [-1, 70_000, float("nan"), float("inf")])
def test_grey_levels_of_no_known_range_are_refused(levels: float) -> None:
    image = np.full((4, 4), 0.5, np.float32)
    image[0, 0] = levels
    with pytest.raises(BrokenItem, match="grey levels"):
        to_pixels([Image.fromarray(image)], 4)


def test_no_program_is_run_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin64c", "convert"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/executed'\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    write_images(tmp_path / "data", ["a.png"])
    (tmp_path / "data" / "b.png").write_bytes(eps)
    write_json(tmp_path / "data" / "captions.json", {"a.png": "one", "b.png": "two"})
    data = open_data(tmp_path / "data")
    for read in (lambda: data[1], lambda: decode(eps)):
        with pytest.raises(BrokenItem, match="not an image file"):
            read()
    assert not (tmp_path / "executed").exists()
    assert "EPS" not in FORMATS


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_size_that_is_claimed_is_not_taken(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(1_000)))
        + _chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(bomb)
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(2**36)
    tracemalloc.start()
    for name in ("a.png", "b.png"):
        with pytest.raises(BrokenItem):
            decode(load_image(str(tmp_path / name), name))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_what_is_no_regular_file_is_a_broken_item(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    write_json(tmp_path / "captions.json", {"a.png": "one", "b.png": "two"})
    path = tmp_path / "b.png"
    path.unlink()
    {
        "pipe": os.mkfifo,
        "device": lambda p: p.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "loop": lambda p: p.symlink_to(p),
    }[kind](path)
    data = open_data(tmp_path)
    with pytest.raises(BrokenItem):
        data[1]
    assert data[0].captions == ("one",)


@pytest.mark.parametrize("name", [b"\xff.png", b"\x1b[2J.png", "\u202egnp.exe".encode() + b".png"])
def test_names_that_are_no_text_are_written_as_escapes(tmp_path: Path, name: bytes) -> None:
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"no image")
    with open(os.fsencode(tmp_path) + b"/" + name[:-3] + b"txt", "w") as file:
        file.write("a caption")
    data = open_data(tmp_path)
    with pytest.raises(BrokenItem) as error:
        data[0]
    assert str(error.value).isprintable()
    str(error.value).encode()


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "5", "null", '{"model": 5}', '{"model": {"type": "BPE"}}', "{" * 5_000, "\0"]
)
def test_damaged_tokenizers_are_one_sentence(tmp_path: Path, content: str) -> None:
    build_word_tokenizer(["a b"]).save_pretrained(tmp_path / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / name)
        (folder / name).write_text(content)
        with suppress(MultiflowError):  # no other exception, and what loads works
            assert load_tokenizer(folder)("a")["input_ids"]


def test_exif_turns_no_image_with_boxes_in_silence(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    write_json(tmp_path / "regions.json", [{"image": "a.jpg", "elems": [{"bb": [0, 0, 5, 5], "caption": "a"}]}])
    with pytest.raises(BrokenItem, match="EXIF turns it"):
        open_data(tmp_path)[0]
    assert ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")).size == (10, 20)
