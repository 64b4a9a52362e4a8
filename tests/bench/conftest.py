"""A small grid over a tiny X-VLM and a small Shapes world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from multiflow.bench.config import read_grid
from multiflow.bench.records import Cell
from multiflow.bench.run import RunOptions, prepare, run_grid
from tests.cli.conftest import world

__all__ = ["world"]

TRAINING = {"preset": "shapes", "steps": 2, "batch_size": 4, "precision": "fp32", "limit": 4}


def config(tiny: Path, world: Path, **changes: Any) -> dict[str, Any]:
    """A grid of three cells: the baseline, and magnitude at two sparsities."""
    calibration = {"data": str(world / "pretrain" / "cc3m"), "batches": 2, "batch_size": 4}
    return {
        "name": "tiny",
        "models": {"tiny": {"source": str(tiny), "tasks": ["retrieval"], "calibration": calibration}},
        "tasks": {"retrieval": {"data": str(world / "coco"), "finetune": dict(TRAINING), "evaluate": {"k_test": 2}}},
        "tiers": [{"name": "1", "pruners": ["dense", "magnitude"], "sparsities": [0.5, 0.75]}],
        **changes,
    }


def write_config(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def compute(path: Path, folder: Path, **options: Any) -> list[Cell]:
    """Run the grid of a config in this process; return the cells that ended."""
    grid, text = read_grid(path)
    how = RunOptions(device="cpu", **options)
    plans, chosen = prepare(grid, how)
    return list(run_grid(grid, text, plans, chosen, folder, how, lambda line: None))


@pytest.fixture
def small(tiny: Path, world: Path) -> dict[str, Any]:
    """The config of the small grid."""
    return config(tiny, world)
