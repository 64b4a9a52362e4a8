"""No sound, picture or weight that others made lies in the repository or in the wheel: what is binary stands in a list.

A file is told by its first bytes, not by its name. What is allowed was made by this project: the bundled models, the
truths that they and random models are compared with, and what old versions wrote of the made-up worlds.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.processes import run

ROOT = Path(__file__).parents[2]
PACKAGED = "src/multiflow/"  # what pyproject puts into the wheel
KINDS = {
    "sound": (rb"RIFF....WAVE|OggS|fLaC|ID3|\xff[\xfb\xf3\xf2]|FORM....AIF|\.snd|caff|MThd",),
    "picture": (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|\0\0\0.ftyp(avif|heic)",),
    "archive": (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|!<arch>|\x28\xb5\x2f\xfd",),
}
ALLOWED = {  # pattern of the path -> bytes of a file at most
    r"src/multiflow/assets/(xvlm-shapes|blip-shapes|vit-digits)/model\.safetensors": 8_000_000,
    r"tests/golden/(xvlm|blip|dino|layers)/\w+\.(safetensors|npz)": 5_500_000,
    r"tests/old_files/artifacts/.*": 130_000,
    r"tests/robust/findings/.*": 140_000,  # damaged files of models with random weights
    r"docs/[\w-]+\.png": 200_000,  # pictures of our own pages
    r"docs/site/.*\.png": 200_000,
}
MOST_TEXT = 6_000_000  # bytes of a text file: figures of the benchmark
EMBEDDED = re.compile(rb"data:(?:image/(?:png|jpe?g|webp|gif)|audio/\w+)[^\"')]{2000}")


@cache
def files() -> tuple[str, ...]:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of the repository")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = run(*words, cwd=ROOT, check=True, limit=60).stdout.split("\0")
    return tuple(sorted(name for name in found if name and (ROOT / name).is_file()))


def kind_of(head: bytes) -> str | None:
    """What a file is by its first bytes; None for text.

    >>> kind_of(b"fLaC...."), kind_of(b"plain words")
    ('sound', None)
    """
    for kind, patterns in KINDS.items():
        if any(re.match(pattern, head, re.DOTALL) for pattern in patterns):
            return kind
    return "other binary" if b"\0" in head else None


def head_of(name: str) -> bytes:
    with (ROOT / name).open("rb") as file:
        return file.read(4096)


def allows(name: str) -> bool:
    size = (ROOT / name).stat().st_size
    return any(re.fullmatch(pattern, name) and size <= most for pattern, most in ALLOWED.items())


def test_what_is_binary_is_ours():
    others = {name: kind for name in files() if (kind := kind_of(head_of(name))) is not None and not allows(name)}
    assert others == {}


def test_the_wheel_holds_no_sound_picture_or_archive_and_no_weights_but_the_bundled_ones():
    inside = [name for name in files() if name.startswith(PACKAGED)]
    assert inside
    binary = {name for name in inside if kind_of(head_of(name)) is not None}
    bundled = {f"{PACKAGED}assets/{of}/model.safetensors" for of in ("xvlm-shapes", "blip-shapes", "vit-digits")}
    assert binary == bundled


def test_no_text_is_so_large_that_it_may_hide_something():
    large = {n: size for n in files() if (size := (ROOT / n).stat().st_size) > MOST_TEXT and not allows(n)}
    assert large == {}


def test_no_page_embeds_a_picture_or_a_sound():
    pages = [name for name in files() if name.endswith((".html", ".md", ".svg", ".json", ".jsonl", ".css", ".js"))]
    assert [name for name in pages if EMBEDDED.search((ROOT / name).read_bytes())] == []


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"RIFF\x24\x08\0\0WAVEfmt ", "sound"),
        (b"OggS\0\x02", "sound"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"PK\x03\x04", "archive"),
        (b"\x1f\x8b\x08", "archive"),
        (b'\x08\x07\0\0\0\0\0\0{"a"', "other binary"),
        (b"# words\n", None),
        ("Grüße".encode(), None),
    ],
)
def test_files_are_told_by_their_first_bytes(head, kind):
    assert kind_of(head) == kind
