"""The report on real weights: that of the benchmark, with what holds here said first."""

from __future__ import annotations

from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.bench.records import CELLS, Results
from multiflow.report.bench import write_report

NOTES = (
    "Models, pictures and words are those of others, out of public packages; only the last layers of the aligned model "
    "were trained here.",
    "No cell is fine-tuned: figures are those straight after pruning, or after a recovery without labels.",
)


def write_real_report(folder: Path) -> list[Path]:
    """Write the report of a folder of results; return its files.

    Raises:
        MultiflowError: the folder holds no results.
    """
    results = Results(folder)
    cells = results.cells() if (folder / CELLS).is_file() else {}
    if not cells:
        raise MultiflowError(f"'{folder}' holds no {CELLS}; run 'python -m benchmarks.real run' first")
    prunings = list(results.prunings().values())
    return write_report(list(cells.values()), prunings, results.expected(), folder / "report", "Real weights", NOTES)
