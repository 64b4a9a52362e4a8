"""The notebooks run from top to bottom, and what they show lies in them."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 200_000  # bytes


def code_of(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_there_and_small(path: Path) -> None:
    cells = code_of(path)
    assert path.stat().st_size < LARGEST
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    kinds = {(one.output_type, one.get("name")) for cell in cells for one in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("execute_result", None), ("display_data", None)}
    assert "/tmp" not in path.read_text()


@pytest.mark.slow
def test_the_first_runs_without_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for cell in code_of(FOLDER / "prune.ipynb"):
        *before, last = ast.parse(cell.source).body
        shown = isinstance(last, ast.Expr)
        exec(compile(ast.Module([*before, *[last] * (not shown)], []), "prune.ipynb", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "prune.ipynb", "eval"), names)
            assert value is None or repr(value)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("dense [9")
    assert said[-1].endswith("zeros are zero: True")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_in_a_kernel(path: Path) -> None:
    execute = runpy.run_path(str(FOLDER.parent / "execute.py"))["execute"]
    cells = [cell for cell in execute(path).cells if cell.cell_type == "code"]
    old = [[one.output_type for one in cell.outputs] for cell in code_of(path)]
    assert [[one.output_type for one in cell.outputs] for cell in cells] == old
