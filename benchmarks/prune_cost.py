"""What pruning costs beyond a plain forward and one pass over the weights.

X-VLM base at full size with random weights, float32, 4 batches of 8 images with texts, masks at three sparsities, all
in one process. Times are medians of interleaved repetitions, so that noise disturbs both sides of a ratio alike.

    python benchmarks/prune_cost.py --json benchmarks/results/prune_cost.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import multiflow as mf
from multiflow.calibration.hooks import evaluating
from multiflow.models.xvlm import XVLMConfig, XVLMForPretraining

SPARSITIES = [0.63, 0.75, 0.9]


def make_batches(count: int, size: int, image_size: int, tokens: int = 40) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = torch.randint(tokens // 4, tokens + 1, (size, 1), generator=generator)
        mask = (torch.arange(tokens) < lengths).long()
        batches.append(
            {
                "pixel_values": torch.randn(size, 3, image_size, image_size, generator=generator),
                "input_ids": torch.randint(1000, 30000, (size, tokens), generator=generator) * mask,
                "attention_mask": mask,
            }
        )
    return batches


def seconds(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {"cpu": cpu or platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def measure(batches: int, batch_size: int, repeats: int, method: str) -> dict[str, Any]:
    model = XVLMForPretraining(XVLMConfig()).eval()
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    data = make_batches(batches, batch_size, model.config.image_size)
    weights = [model.get_submodule(name).weight for name in layout]

    def forward() -> None:
        with torch.no_grad(), evaluating(model):
            for batch in data:
                adapter.forward(model, batch)

    @torch.no_grad()
    def one_pass() -> None:
        for weight in weights:
            weight.abs().sum()

    forward()  # warm up, and the peak of model + plain forward
    forward_peak = peak_mb()
    stats = mf.calibrate(model, data)
    times: dict[str, list[float]] = {"forward_s": [], "calibrate_s": [], "select_s": [], "pass_s": []}
    for _ in range(repeats):
        times["forward_s"].append(seconds(forward))
        times["calibrate_s"].append(seconds(lambda: mf.calibrate(model, data)))
        times["pass_s"] += [seconds(one_pass) for _ in range(3)]
        times["select_s"].append(seconds(lambda: mf.prune(model, method, SPARSITIES, stats)))
    result = mf.prune(model, method, SPARSITIES, data)
    with TemporaryDirectory() as folder:
        size = result.masks[0.75].save(Path(folder) / "mask.safetensors").stat().st_size
    return {
        **{name: statistics.median(values) for name, values in times.items()},
        "forward_peak_mb": forward_peak,
        "total_peak_mb": peak_mb(),
        "mask_file_mb": size / 1e6,
        "calibrate_ratio": statistics.median(
            c / f for c, f in zip(times["calibrate_s"], times["forward_s"], strict=True)
        ),
        "method": method,
        "weights": layout.size,
        "batches": batches,
        "batch_size": batch_size,
        "repeats": repeats,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", default="multiflow")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.batches, args.batch_size, args.repeats, args.method)

    table = Table(
        "what", "measured", "limit", "ratio", title=f"{args.method} on X-VLM base, {found['weights']:,} weights"
    )
    table.add_row("plain forward", f"{found['forward_s']:.2f} s", "", "")
    table.add_row("calibration", f"{found['calibrate_s']:.2f} s", "1.10 x forward", f"{found['calibrate_ratio']:.3f}")
    table.add_row("one pass over the weights", f"{found['pass_s']:.3f} s", "", "")
    select = found["select_s"] / found["pass_s"]
    table.add_row(
        "scores + budgets + masks, 3 sparsities", f"{found['select_s']:.2f} s", "60 x (aim 25 x) pass", f"{select:.1f}"
    )
    memory = found["total_peak_mb"] / found["forward_peak_mb"]
    table.add_row("peak memory of model + forward", f"{found['forward_peak_mb']:.0f} MB", "", "")
    table.add_row("peak memory of all", f"{found['total_peak_mb']:.0f} MB", "1.15 x", f"{memory:.3f}")
    table.add_row("mask file", f"{found['mask_file_mb']:.1f} MB", "23 MB", "")
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
