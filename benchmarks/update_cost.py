"""What update methods cost on a base model, against what they announce: seconds, processor seconds and peak memory.

X-VLM base at full size (184 M prunable weights), random weights, real second moments from 4 batches of 8 pairs, one
sparsity; each method in a process of its own, which prints what was announced before it starts. Wall seconds depend on
what else the machine does; processor seconds of all threads, over the number of threads, say what an idle one would take.

    python benchmarks/update_cost.py --json benchmarks/results/update_cost.json
    python benchmarks/update_cost.py --method exchange --sparsity 0.5 --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from base_models import MODELS, build, machine, make_batches, peak_mb
from rich.console import Console
from rich.table import Table

import multiflow as mf

BATCHES, SIZE = 4, 8
LIMITS = {"sparsegpt": 240.0, "exchange": 600.0}  # seconds on two cores


def measure(name: str, method: str, sparsity: float, hyper: dict[str, Any]) -> dict[str, Any]:
    """Estimate, calibrate, and fit; the peak is that of the whole process beyond the model and the batches."""
    model, batches = build(name), make_batches(name, BATCHES, SIZE)
    adapter = mf.adapter_for(model)
    with torch.no_grad():
        adapter.forward(model, batches[0])  # what a forward takes is not the method's
    before = peak_mb()
    said = mf.estimate(model, method, sparsity, adapter=adapter, **hyper)
    print(f"{method}: {said}", file=sys.stderr, flush=True)
    begun, busy = time.perf_counter(), time.process_time()
    stats = mf.calibrate(model, batches, adapter=adapter, statistics=["input_moment"])
    middle, middle_busy = time.perf_counter(), time.process_time()
    # what was measured is part of what was announced; the result holds it no longer than `prune` would
    result = mf.prune(model, method, sparsity, stats, adapter=adapter, **hyper)
    ended, ended_busy = time.perf_counter(), time.process_time()
    masks = result.masks[sparsity]
    layout = adapter.layout(model)
    return {
        "method": method,
        "hyper": hyper,
        "sparsity": sparsity,
        "weights": layout.size,
        "exact": all(masks.dropped(layer.name) == round(sparsity * layer.size) for layer in layout.layers),
        "calibrate_s": middle - begun,
        "calibrate_cpu_s": middle_busy - busy,
        "fit_s": ended - middle,
        "fit_cpu_s": ended_busy - middle_busy,
        "announced_s": said.seconds,
        "announced_mb": said.memory / 2**20,
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the figures beside what was announced and the limits."""
    table = Table("method", "zeros", "processor s / threads", "limit", "fit, announced", "fit", "memory, announced", "memory")
    table.title = title
    for row in rows:
        threads = row["machine"]["threads"]
        busy = (row["calibrate_cpu_s"] + row["fit_cpu_s"]) / threads
        table.add_row(
            row["method"],
            f"{row['sparsity']:.0%}",
            f"{busy:.0f}",
            f"{LIMITS[row['method']]:.0f}" if row["method"] in LIMITS else "",
            f"{row['announced_s']:.0f} s",
            f"{row['fit_s']:.0f} s",
            f"{row['announced_mb']:.0f} MB",
            f"{row['peak_mb'] - row['before_mb']:.0f} MB",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="xvlm-base")
    parser.add_argument("--method", nargs="*", default=["sparsegpt", "exchange"])
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyper-parameters of all the methods")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to which the figures are added")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hyper = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    if args.one:
        load = os.getloadavg()[0]
        row = measure(args.model, args.method[0], args.sparsity, hyper)
        print(json.dumps({**row, "machine": {**machine(), "load_before": round(load, 2)}}))
        return
    rows = []
    for method in args.method:
        command = [sys.executable, __file__, "--one", "--model", args.model, "--method", method]
        command += ["--sparsity", str(args.sparsity), "--threads", str(args.threads)]
        command += ["--set", *args.set] if args.set else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if args.json:
            key = f"{args.model} {method} {args.sparsity:g}" + "".join(f" {pair}" for pair in args.set)
            known = json.loads(args.json.read_text()) if args.json.exists() else {}
            args.json.write_text(json.dumps({**known, key: rows[-1]}, indent=1) + "\n")
    show(rows, f"{MODELS[args.model][0]}, {BATCHES} batches of {SIZE}")


if __name__ == "__main__":
    main()
