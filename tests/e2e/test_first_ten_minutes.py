"""The page that a new user reads first does what it says: commands and Python are run, from top to bottom.

That a small script of a user passes ``mypy --strict`` is checked with the code: ``tests/typed_script.py`` (pyproject).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, blocks_of, run_page

PAGE = "docs/first-ten-minutes.md"


def test_the_page_runs_from_top_to_bottom_and_shows_what_is_printed(
    run: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    printed: dict[str, str] = {}

    def noted(*args: str) -> Any:
        done = run(*args)
        printed[shlex.join(args)] = done.out
        return done

    assert run_page(PAGE, noted) > 5
    screens = [part for block in blocks_of(PAGE) for part in re.split(r"^\$ multiflow ", block.text, flags=re.M)[1:]]
    assert [shlex.join(shlex.split(screen.splitlines()[0], comments=True)) for screen in screens] == [*printed]
    for screen, said in zip(screens, printed.values(), strict=True):
        there = {without_figures(line) for line in said.splitlines()}
        shown = {without_figures(line) for line in screen.splitlines()[1:] if not line.startswith("... ")}
        assert shown <= there, f"{shown - there}; renew the page with: python docs/first_ten_minutes.py"
    assert (place / "runs/compare/compare.html").is_file()
    assert (place / "runs/report.html").is_file()


def without_figures(line: str) -> str:
    """A line as it is on every machine: without numbers, and the widths of columns that they make."""
    return re.sub(r"[─\s]+", " ", re.sub(r"\d[\d.,]*", "#", line)).strip()


def test_a_users_script_is_checked_with_strict_types() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert "tests/typed_script.py" in settings
    assert "import multiflow as mf" in (ROOT / "tests/typed_script.py").read_text()
