"""Runs the notebooks of ``docs/notebooks`` in a fresh kernel each, and writes what they show into them.

``python docs/execute.py [NAME ...]``. Times of cells and what goes to standard error are left out, so that a notebook
changes only where its text or what it shows does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
LONGEST = 300  # seconds of a cell


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run from top to bottom; raises where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=LONGEST, record_timing=False, resources={"metadata": {"path": FOLDER}})
    # bars are for those who look on
    client.execute(env={**os.environ, "MULTIFLOW_PROGRESS": "0", "TOKENIZERS_PARALLELISM": "false"})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined([one for one in cell.outputs if one.get("name") != "stderr"])
    notebook.metadata.pop("signature", None)
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What was printed in one go is one output, however the kernel cut it."""
    found: list[nbformat.NotebookNode] = []
    for one in outputs:
        if found and one.output_type == found[-1].output_type == "stream":
            found[-1].text += one.text
        else:
            found.append(one)
    return found


def main(names: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            nbformat.write(execute(path), path)
            print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
