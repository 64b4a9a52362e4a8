"""Seconds and peak memory of every pruner on X-VLM base, each in a process of its own.

Full size, random weights, float32, one sparsity (75 %), 4 batches of 4 pairs. Methods in steps take 3 of them with all
4 batches in each, TAMT trains 4 steps, CHITA holds 4 gradient rows.

    python benchmarks/every_pruner.py --json benchmarks/results/every_pruner.json
    python benchmarks/every_pruner.py --method ria lobs --json benchmarks/results/every_pruner.json     # adds these
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from base_models import MODELS, build, machine, make_batches, peak_mb
from rich.console import Console
from rich.table import Table

import multiflow as mf

BATCHES, SIZE = 4, 4
HYPER: dict[str, dict[str, Any]] = {
    "itersnip": {"steps": 3, "batches_per_step": BATCHES},
    "chita": {"batches_per_step": BATCHES},
    "chita++": {"steps": 3, "batches_per_step": BATCHES},
    "tamt": {"steps": 4},
}


def measure(model_name: str, method: str) -> dict[str, Any]:
    """Prune once; the peak is that of the whole process."""
    model, data = build(model_name), make_batches(model_name, BATCHES, SIZE)
    before = peak_mb()
    result = mf.prune(model, method, 0.75, data, **HYPER.get(method, {}))
    return {
        "seconds": result.seconds,
        "timings": dict(result.timings),
        "model_mb": before,
        "peak_mb": peak_mb(),
        "sparsity": result.masks[0.75].sparsity,
        "hyper": HYPER.get(method, {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="xvlm-base")
    parser.add_argument("--method", nargs="*", default=list(mf.list_pruners()))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.model, args.one)))
        return
    found: dict[str, Any] = {}
    table = Table("pruner", "seconds", "peak memory", "of it the model", title=f"{MODELS[args.model][0]}, 75 %")
    for method in args.method:
        command = [sys.executable, __file__, "--model", args.model, "--threads", str(args.threads), "--one", method]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[method] = row = {**json.loads(done.stdout.splitlines()[-1]), "machine": machine()}
        peak, own = f"{row['peak_mb'] / 1000:.2f} GB", f"{row['model_mb'] / 1000:.2f} GB"
        table.add_row(method, f"{row['seconds']:.1f}", peak, own)
        print(f"{method}: {row['seconds']:.1f} s, {peak}", file=sys.stderr)
    Console().print(table)
    if args.json:
        setting = {"model": args.model, "batches": BATCHES, "batch_size": SIZE}
        args.json.write_text(
            json.dumps({**setting, "pruners": {**before(args.json, setting), **found}}, indent=1) + "\n"
        )


def before(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Return what a file already has of the same setting."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if any(known.get(name) != value for name, value in setting.items()):
        return {}
    return {method: {"machine": known.get("machine"), **row} for method, row in known["pruners"].items()}


if __name__ == "__main__":
    main()
