"""The page that a new user reads first does what it says: commands and Python are run, from top to bottom.

That a small script of a user passes ``mypy --strict`` is checked with the code: ``tests/typed_script.py`` (pyproject).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, run_page


def test_the_page_runs_from_top_to_bottom(run: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert run_page("docs/first-ten-minutes.md", run) > 5
    assert (place / "runs/compare/compare.html").is_file()
    assert (place / "runs/report.html").is_file()


def test_a_users_script_is_checked_with_strict_types() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert "tests/typed_script.py" in settings
    assert "import multiflow as mf" in (ROOT / "tests/typed_script.py").read_text()
