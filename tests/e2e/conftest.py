"""Pages of the documentation as programs: their blocks of code, and a folder in which they run as they stand."""

from __future__ import annotations

import faulthandler
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
HUB = {
    "openai/clip-vit-base-patch32": "clip",
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm",
    "llava-1.5-13b": "llava",
}
"""Where the pages name a model of the Hub: the tiny one of its type that stands there."""


class Code(NamedTuple):
    """A block of code of a page."""

    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether nothing is needed that a test has not: the first line of the others says what they need."""
        return self.language in ("bash", "python") and not self.text.startswith("# needs ")

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, where its first line says so."""
        found = re.match(r"# ([\w/]+\.py)\n", self.text)
        return found[1] if found else None

    @property
    def lines(self) -> list[str]:
        """The commands of a block of bash."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


def blocks_of(page: str) -> list[Code]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Code(*found) for found in re.findall(r"^[ ]*```([^\n]*)\n(.*?)^[ ]*```", text, re.S | re.M)]


def run_python(block: Code, page: str, names: dict[str, Any]) -> None:
    """Run a block of Python where the page has come to; one that is a file is written instead."""
    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
        return
    exec(compile(block.text, page, "exec"), names)


def run_page(page: str, run: Any, languages: Sequence[str] = ("bash", "python")) -> int:
    """Run a page from top to bottom; return the number of blocks and commands."""
    names: dict[str, Any] = {"__name__": page}
    ran = 0
    for block in blocks_of(page):
        if not block.runs or block.language not in languages:
            continue
        if block.language == "python":
            run_python(block, page, names)
            ran += 1
            continue
        for line in block.lines:
            program, *args = shlex.split(line, comments=True)
            assert program == "multiflow", line
            done = run(*args)
            assert done.code == 0, (line, done.err)
            ran += 1
    return ran


@pytest.fixture
def unhurried() -> None:
    """For a page that takes minutes where it is alone: beside its own limit, none ends the process."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def place(tmp_path: Path, vlm: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some photos in a table, and tiny models where the ids of the Hub lead to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder in (Path("."), Path("photos")):
        folder.mkdir(exist_ok=True)
        rows = ["image,caption"]
        for number in range(32):
            Image.new("RGB", (40, 32), (8 * number, 100, 200 - 5 * number)).save(folder / f"{number}.png")
            rows.append(f"{number}.png,a photo of the number {number}")
        (folder / ("photos.csv" if folder == Path(".") else "captions.csv")).write_text("\n".join(rows))
    for name, kind in HUB.items():
        folder = tmp_path / name
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(vlm(kind))
    return tmp_path
