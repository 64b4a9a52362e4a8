"""Every page does what it says: its blocks run as they stand, from top to bottom.

A block that needs what a test has not begins with ``# needs``, and is read alone: commands are understood, Python
compiles. What takes longer than a moment runs with the slow tests.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multiflow.bench.config import read_grid
from multiflow.cli import find_command
from multiflow.cli.settings import parse

from .conftest import ROOT, blocks_of, run_page

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/tutorials/*.md", "src/multiflow/assets/*/README.md")
    for path in ROOT.glob(pattern)
)
QUICK = [page for page in PAGES if "/tutorials/" in page and "fine-tune" not in page]
"""Pages whose commands run always; ``test_first_ten_minutes.py`` runs one more."""
ELSEWHERE = ("docs/fine-tuning.md", "docs/add-a-model.md", "docs/first-ten-minutes.md", *QUICK)
"""Pages whose Python another test runs, and looks at what comes of it."""
PYTHON = [
    page for page in PAGES if page not in ELSEWHERE and any(b.runs and b.language == "python" for b in blocks_of(page))
]
SLOW = [page for page in PAGES if page not in QUICK and any(b.runs and b.language == "bash" for b in blocks_of(page))]
LONG = ("docs/recovery.md",)
"""Pages whose Python takes longer than a moment: it runs with the slow tests."""
OTHERS = ("git", "pip", "make", "accelerate", "torchrun", "python")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language_and_can_be_read(page: str) -> None:
    for block in blocks_of(page):
        assert block.language in ("bash", "python", "text", "yaml", "json", "bibtex"), block.text[:80]
        if block.language == "python":
            compile(block.text, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page: str) -> None:
    for words in commands_of(page):
        command, rest = find_command(words)
        assert command is not None, words
        assert parse(command.load()[0], command, rest) is not None, words


def commands_of(page: str) -> Iterator[list[str]]:
    """The words after ``multiflow`` of all commands, also of those that another program starts."""
    for block in blocks_of(page):
        for line in block.lines if block.language == "bash" else ():
            program, *args = shlex.split(line, comments=True)
            assert program == "multiflow" or program in OTHERS, line
            if program == "multiflow":
                yield args
            elif "multiflow" in args and "-m" in args:
                yield args[args.index("multiflow") + 1 :]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in LONG else page for page in PYTHON]
)
def test_the_python_of_a_page_runs(page: str, run: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert run_page(page, run, ["python"])


@pytest.mark.parametrize("page", QUICK)
def test_a_page_runs_from_top_to_bottom(page: str, run: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert run_page(page, run) > 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("page", SLOW)
def test_the_commands_of_a_page_run(page: str, run: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert run_page(page, run, ["bash"])


def test_the_grid_of_the_page_on_benchmarks_is_one(tmp_path: Path) -> None:
    (grid,) = [block.text for block in blocks_of("docs/bench.md") if block.language == "yaml"]
    (tmp_path / "grid.yaml").write_text(grid)
    assert read_grid(str(tmp_path / "grid.yaml"), ())[0].name == "shapes"
