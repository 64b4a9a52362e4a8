"""What update methods cost on a base model, against what they announce: seconds, processor seconds and peak memory.

X-VLM base at full size (184 M prunable weights), random weights, real second moments from 4 batches of 8 pairs, one
sparsity; each method in a process of its own, which prints what was announced before it starts. Wall seconds depend on
what else the machine does; processor seconds of all threads, over the number of threads, are what an idle one takes.
With ``--sample N`` only N layers of each shape are fitted, and seconds scaled up to all layers of that shape.

    python benchmarks/update_cost.py --json benchmarks/results/update_cost.json
    python benchmarks/update_cost.py --method exchange --sparsity 0.5 --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import re
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


def parts(layout: mf.Layout, sample: int) -> list[tuple[list[str], float]]:
    """Return the layers to fit together, and what their seconds count: all, or some of each shape, evenly chosen."""
    if not sample:
        return [(list(layout), 1.0)]
    shapes: dict[tuple[int, ...], list[str]] = {}
    for layer in layout.layers:
        shapes.setdefault(layer.shape, []).append(layer.name)
    chosen = [names[:: max(1, len(names) // sample)][:sample] for names in shapes.values()]
    return [(some, len(names) / len(some)) for some, names in zip(chosen, shapes.values(), strict=True)]


def measure(name: str, method: str, sparsity: float, hyper: dict[str, Any], sample: int) -> dict[str, Any]:
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
    layout, seconds, processor, exact, found = adapter.layout(model), 0.0, 0.0, True, []
    for names, times in parts(layout, sample):
        some = mf.Adapter(groups={"all": f"^({'|'.join(map(re.escape, names))})$"}, forward=adapter.forward)
        start, start_busy = time.perf_counter(), time.process_time()
        found.append(mf.prune(model, method, sparsity, stats, adapter=some, **hyper))
        seconds += times * (time.perf_counter() - start)
        processor += times * (time.process_time() - start_busy)
        masks = found[-1].masks[sparsity]
        exact &= all(masks.dropped(name) == round(sparsity * layout[name].size) for name in names)
    return {
        "method": method,
        "hyper": hyper,
        "sparsity": sparsity,
        "weights": layout.size,
        "sample": sample or None,
        "exact": exact,
        "calibrate_s": middle - begun,
        "calibrate_cpu_s": middle_busy - busy,
        "fit_s": seconds,
        "fit_cpu_s": processor,
        "announced_s": said.seconds,
        "announced_mb": said.memory / 2**20,
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the figures beside what was announced and the limits."""
    table = Table(
        "method", "zeros", "processor s / threads", "limit", "fit, announced", "fit", "memory, announced", "memory"
    )
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
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="hyper-parameters of all the methods"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="layers of each shape to fit, instead of all")
    parser.add_argument("--json", type=Path, help="file to which the figures are added")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hyper = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    if args.one:
        load = os.getloadavg()[0]
        row = measure(args.model, args.method[0], args.sparsity, hyper, args.sample)
        print(json.dumps({**row, "machine": {**machine(), "load_before": round(load, 2)}}))
        return
    rows = []
    for method in args.method:
        command = [sys.executable, __file__, "--one", "--model", args.model, "--method", method]
        command += ["--sparsity", str(args.sparsity), "--threads", str(args.threads), "--sample", str(args.sample)]
        command += ["--set", *args.set] if args.set else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if args.json:
            key = " ".join([args.model, method, f"{args.sparsity:g}", *args.set])
            known = json.loads(args.json.read_text()) if args.json.exists() else {}
            args.json.write_text(json.dumps({**known, key: rows[-1]}, indent=1) + "\n")
    show(rows, f"{MODELS[args.model][0]}, {BATCHES} batches of {SIZE}")


if __name__ == "__main__":
    main()
