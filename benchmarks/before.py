"""What the cells of a grid that retrieve reach before fine-tuning: the same masks, the same test pictures, no training.

Run it in the folder in which the grid ran; masks that the results no longer hold are made anew.

    python benchmarks/before.py benchmarks/results/shapes --only pruner=dense,multiflow seed=0 --json FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from multiflow.bench.config import read_grid
from multiflow.bench.grid import Plan, expand, select
from multiflow.bench.pruning import pruned
from multiflow.bench.records import CONFIG, Results
from multiflow.bench.sources import load_beside
from multiflow.bench.work import evaluate, evaluation_options, sparse_copy
from multiflow.families.opening import quiet_transformers


def measure(plan: Plan, results: Results) -> dict[str, float]:
    """Return the figures of a cell's model on its test data, straight after pruning."""
    model, masks = pruned(plan, results, "cpu")
    model = sparse_copy(model, masks)
    return dict(evaluate(plan, model, load_beside(plan.model, model), evaluation_options(plan, model)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", default=[], help="as for 'multiflow bench run'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="figures that it holds already are not measured again")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = Results(given.results)
    grid, _ = read_grid(given.results / CONFIG)
    plans = [plan for plan in select(expand(grid), (), given.only) if plan.cell.task == "retrieval"]
    found: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    table = Table("model", "pruner", "zeros", "seed", "TR@1", "IR@1")
    for plan in plans:
        cell = plan.cell
        if cell.id not in found:
            with quiet_transformers():
                figures = measure(plan, results)
            what = {"model": cell.model, "pruner": cell.pruner, "sparsity": cell.sparsity, "seed": cell.seed}
            found[cell.id] = {**what, "figures": figures}
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")
        figures = found[cell.id]["figures"]
        table.add_row(
            cell.model,
            cell.pruner,
            f"{cell.sparsity:.0%}",
            str(cell.seed),
            *(f"{figures[k]:.1f}" for k in ("TR@1", "IR@1")),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
