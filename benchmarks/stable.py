"""How few pairs are enough: the agreement of masks at each doubling of the calibration data.

A model calibrates on scenes of Shapes (a ViT on handwritten digits), a few at a time, until 99.5 % of the kept weights
are kept by the masks of half the data too, at 63, 75 and 90 %. Each method runs with several seeds of the data; the
table gives the mean over those that came so far, and how many were stable by then. Results are added to the JSON file,
model by model and method by method.

    python benchmarks/stable.py xvlm-shapes --json benchmarks/results/stable.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from base_models import machine
from rich.console import Console
from rich.table import Table

import multiflow as mf
from multiflow.families.batches import Source, open_batches
from multiflow.families.opening import find_model, open_model
from multiflow.worlds.digits.vit import write_digits

SPARSITIES = [0.63, 0.75, 0.9]
METHODS = ["multiflow", "wanda", "snip"]
IMAGES_ONLY = ("vit", "dinov2")  # models that calibrate on images


def measure(model: Any, place: str, method: str, source: Source, threshold: float) -> dict[str, Any]:
    """Calibrate until the masks are stable; return the curve as plain values."""
    found = mf.prune(model, method, SPARSITIES, open_batches(model, place, source), until_stable=threshold)
    summary = found.summary()
    return {"seed": source.seed, "samples": found.curve[-1].samples, **{k: summary[k] for k in ("stable", "curve")}}


def rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each doubling: samples, mean agreement at each sparsity, how many runs came so far and stopped."""
    made = []
    for at in range(max(len(run["curve"]) for run in runs)):
        points = [run["curve"][at] for run in runs if len(run["curve"]) > at]
        shares = [mean(point["agreement"][f"{s:g}"] for point in points) for s in SPARSITIES]
        stopped = sum(run["stable"] and len(run["curve"]) <= at + 1 for run in runs)
        made.append([str(points[0]["samples"]), *(f"{share:.2%}" for share in shares), f"{stopped} of {len(runs)}"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundled model, or the folder of one trained on Shapes or digits")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=4096, help="at most")
    parser.add_argument("--threshold", type=float, default=0.995)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="put into the JSON")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    place = find_model(args.model)
    model: Any = open_model(place, None, None)
    results: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        data = str(write_digits(Path(name) / "digits") / "train") if model.config.model_type in IMAGES_ONLY else None
        kind = "images" if data else "pairs"
        settings = {"kind": kind, "batch_size": args.batch_size, "most": args.pairs, "threshold": args.threshold}
        settings |= {"note": args.note, **machine()}
        for method in args.methods:
            sources = [
                Source(data, batches=args.pairs // args.batch_size, batch_size=args.batch_size, seed=seed)
                for seed in args.seeds
            ]
            found = [measure(model, place, method, source, args.threshold) for source in sources]
            table = Table(kind, *(f"{s:.0%}" for s in SPARSITIES), "stable", title=f"{args.model}, {method}")
            for row in rows(found):
                table.add_row(*row)
            Console().print(table)
            results[method] = {**settings, "runs": found}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        there = json.loads(args.json.read_text()) if args.json.exists() else {}
        there[args.model] = {**there.get(args.model, {}), **results}
        args.json.write_text(json.dumps(there, indent=2) + "\n")


if __name__ == "__main__":
    main()
