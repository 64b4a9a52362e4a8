"""What pruning costs beyond running the model and one pass over the weights.

A base model at full size with random weights, float32, batches of images with texts, masks at three sparsities, all in
one process. Times are medians of interleaved repetitions, so that noise disturbs both sides of a ratio alike.

Forward-only methods (multiflow, wanda, ria) are compared with the plain forward of the same batches; snip and itersnip
with the plain forward and backward of the same batches, itersnip at one sparsity and with all batches in each step.

    python benchmarks/prune_cost.py --json benchmarks/results/prune_cost.json
    python benchmarks/prune_cost.py --model blip-base --method snip --batches 2 --batch-size 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from base_models import MODELS, build, machine, make_batches, peak_mb
from rich.console import Console
from rich.table import Table

import multiflow as mf
from multiflow.calibration import differentiable, evaluating

SPARSITIES = [0.63, 0.75, 0.9]
STEPS = 2


def seconds(function: Callable[[], Any]) -> float:
    """Time one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def measure_forward(name: str, method: str, data: list[Any], repeats: int) -> dict[str, Any]:
    """Compare calibration with the plain forward, and selection with one pass over the weights."""
    model = build(name)
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    weights = [model.get_submodule(layer).weight for layer in layout]

    @torch.no_grad()
    def forward() -> None:
        with evaluating(model):
            for batch in data:
                adapter.forward(model, batch)

    @torch.no_grad()
    def one_pass() -> None:
        for weight in weights:
            weight.abs().sum()

    forward()  # warm up, and the peak of model + plain forward
    plain_peak = peak_mb()
    stats = mf.calibrate(model, data)
    plain, calibrated, passes, selected = [], [], [], []
    for _ in range(repeats):
        plain.append(seconds(forward))
        calibrated.append(seconds(lambda: mf.calibrate(model, data)))
        passes += [seconds(one_pass) for _ in range(3)]
        selected.append(seconds(lambda: mf.prune(model, method, SPARSITIES, stats)))
    result = mf.prune(model, method, SPARSITIES, data)
    with TemporaryDirectory() as folder:
        size = result.masks[0.75].save(Path(folder) / "mask.safetensors").stat().st_size
    return {
        "plain": "forward",
        "plain_s": statistics.median(plain),
        "calibrate_s": statistics.median(calibrated),
        "calibrate_ratio": median_ratio(calibrated, plain),
        "pass_s": statistics.median(passes),
        "select_s": statistics.median(selected),
        "select_ratio": statistics.median(selected) / statistics.median(passes),
        "plain_peak_mb": plain_peak,
        "total_peak_mb": peak_mb(),
        "mask_file_mb": size / 1e6,
        "weights": layout.size,
    }


def measure_backward(name: str, method: str, data: list[Any], repeats: int) -> dict[str, Any]:
    """Compare the measurement of gradients with the plain forward and backward of the same batches."""
    model = build(name)
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    weights = {layer: model.get_submodule(layer).weight for layer in layout}
    passes = STEPS if method == "itersnip" else 1
    hyper = {"steps": STEPS, "batches_per_step": len(data)} if method == "itersnip" else {}

    def plain_pass() -> None:
        with differentiable(model, weights):
            for _ in range(passes):
                for batch in data:
                    adapter.loss(model, batch).backward()  # gradients add up in .grad

    plain_pass()  # warm up, and the peak of model + plain forward and backward
    plain_peak = peak_mb()
    plain, pruned = [], []
    for _ in range(repeats):
        plain.append(seconds(plain_pass))
        pruned.append(mf.prune(model, method, 0.75 if hyper else SPARSITIES, data, **hyper).seconds)
    return {
        "plain": f"forward + backward, {passes} x",
        "plain_s": statistics.median(plain),
        "prune_s": statistics.median(pruned),
        "prune_ratio": median_ratio(pruned, plain),
        "plain_peak_mb": plain_peak,
        "total_peak_mb": peak_mb(),
        "weights": layout.size,
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures beside their limits."""
    title = f"{found['method']} on {MODELS[found['model']][0]}, {found['weights']:,} weights"
    table = Table("what", "measured", "limit", "ratio", title=title)
    table.add_row(f"plain {found['plain']}", f"{found['plain_s']:.2f} s", "", "")
    memory_limit = "1.25 x"
    if "calibrate_s" in found:
        memory_limit = "1.15 x"
        table.add_row("calibration", f"{found['calibrate_s']:.2f} s", "1.10 x", f"{found['calibrate_ratio']:.3f}")
        table.add_row("one pass over the weights", f"{found['pass_s']:.3f} s", "", "")
        ratio = f"{found['select_ratio']:.1f}"
        table.add_row("scores to masks, 3 sparsities", f"{found['select_s']:.2f} s", "60 x pass (aim 25)", ratio)
        table.add_row("mask file", f"{found['mask_file_mb']:.1f} MB", "1 bit a weight", "")
    else:
        table.add_row("pruning, all of it", f"{found['prune_s']:.2f} s", "1.15 x", f"{found['prune_ratio']:.3f}")
    table.add_row("peak memory, plain", f"{found['plain_peak_mb']:.0f} MB", "", "")
    memory = found["total_peak_mb"] / found["plain_peak_mb"]
    table.add_row("peak memory, pruning", f"{found['total_peak_mb']:.0f} MB", memory_limit, f"{memory:.3f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="xvlm-base")
    parser.add_argument("--method", default="multiflow", choices=["multiflow", "wanda", "ria", "snip", "itersnip"])
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to which the figures of this model and method are added")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = make_batches(args.model, args.batches, args.batch_size)
    measure = measure_backward if "snip" in args.method else measure_forward
    setting = {name: getattr(args, name) for name in ("model", "method", "batches", "batch_size", "repeats")}
    found = {**setting, **measure(args.model, args.method, data, args.repeats), "machine": machine()}
    show(found)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        known[f"{args.model} {args.method}"] = found
        args.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
