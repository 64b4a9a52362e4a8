"""What the documentation shows is true: generated pages are fresh, examples run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_fresh():
    methods = runpy.run_path(str(ROOT / "docs/generate.py"))["methods"]
    assert (ROOT / "docs/methods.md").read_text() == methods(), "run make docs"


def test_the_example_of_any_other_model_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-model.md").read_text(), re.S)
    exec(compile(code, "add-a-model.md", "exec"), {})
    assert capsys.readouterr().out.startswith("{'vision': 0.5, 'text': 0.5}")


@pytest.mark.parametrize("page", [*sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.md")), "docs"])
def test_links_lead_somewhere(page):
    pages = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).glob("*.md"))
    for path in pages:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), (path.name, target)
