"""The pages that a new user reads first do what they say: commands and Python are run, from top to bottom."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("first-ten-minutes.md", "tutorials/prune-clip.md", "tutorials/compare.md", "tutorials/recover-and-ship.md")
HUB_ID = "openai/clip-vit-base-patch32"


@pytest.fixture
def place(tmp_path: Path, vlm: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some photos in a table, and a tiny CLIP where its id leads to."""
    monkeypatch.chdir(tmp_path)
    rows = ["image,caption"]
    for number in range(32):
        Image.new("RGB", (40, 32), (8 * number, 100, 200 - 5 * number)).save(f"{number}.png")
        rows.append(f"{number}.png,a photo of the number {number}")
    Path("photos.csv").write_text("\n".join(rows))
    folder = tmp_path / HUB_ID
    folder.parent.mkdir()
    folder.symlink_to(vlm("clip"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(page, run, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict[str, Any] = {"__name__": page}
    ran = 0
    for language, code in re.findall(r"```(bash|python)\n(.*?)```", (DOCS / page).read_text(), re.S):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            ran += 1
            continue
        for line in code.strip().splitlines():
            program, *args = shlex.split(line, comments=True)
            assert program == "multiflow", line
            done = run(*args)
            assert done.code == 0, (line, done.err)
            ran += 1
    assert ran > 1
