"""What keeping zeros costs: a fine-tuning step of a sparse task model against that of the dense one.

Time: both models train on the same batch, step by step in turn and each first in every other pair, so that whatever
else the machine does hits both; the ratio is the median of those of the pairs. Memory: each model trains in a process
of its own, whose peak is taken.

    python benchmarks/finetune_step.py --json benchmarks/results/finetune_step.json
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from base_models import machine
from rich.console import Console
from rich.table import Table

import multiflow as mf
from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining
from multiflow.masks.keep import buffer_places
from multiflow.training.loop import make_optimizer
from multiflow.training.settings import TrainSettings

GOAL = 1.03
SPARSITY = 0.75
TOKENS = 20
BATCH = {"xvlm-shapes": 32, "blip-shapes": 32, "xvlm-base": 4}


def pretrained(name: str) -> Any:
    torch.manual_seed(0)
    return XVLMForPretraining(XVLMConfig()).eval() if name == "xvlm-base" else mf.load_model(name)


def batch_for(model: Any, size: int) -> dict[str, Any]:
    draw, config = torch.Generator().manual_seed(0), model.config
    return {
        "pixel_values": torch.randn(size, 3, config.image_size, config.image_size, generator=draw),
        "input_ids": torch.randint(5, config.text["vocab_size"], (size, TOKENS), generator=draw),
        "attention_mask": torch.ones(size, TOKENS, dtype=torch.long),
        "image_ids": torch.arange(size),
        "seed": 0,
    }


def trainer(name: str, sparse: bool, size: int, stack: ExitStack, device: str) -> tuple[Callable[[], None], int]:
    """Return a function that takes one step, and the number of weights under a mask."""
    model = pretrained(name)
    built, places = mf.build_task_model(model, "retrieval")
    masks = mf.prune(model, "random", SPARSITY).masks[SPARSITY] if sparse else None
    del model
    torch.nn.Module.to(built.train(), device)
    optimizer = make_optimizer(built, TrainSettings(1, 1e-5))
    batch = {key: x.to(device) if hasattr(x, "to") else x for key, x in batch_for(built, size).items()}
    held = 0
    if masks is not None:
        moved = mf.task_masks(masks, places, built)
        stack.enter_context(mf.keep_sparse(built, moved, optimizer, buffer_places(built, moved, places)))
        held = moved.layout.size

    def step() -> None:
        optimizer.zero_grad()
        built(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return step, held


def seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def peak(name: str, sparse: bool, size: int, device: str, threads: int) -> int:
    """Peak memory in bytes of a process that takes three steps."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        step, _ = trainer(name, sparse, size, stack, device)
        for _ in range(3):
            step()
    return (
        torch.cuda.max_memory_allocated()
        if device != "cpu"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def measure(name: str, size: int, steps: int, device: str, threads: int) -> dict[str, Any]:
    with ExitStack() as stack:
        (dense, _), (sparse, held) = (trainer(name, kind, size, stack, device) for kind in (False, True))
        for step in (dense, sparse):
            step()
        took = []
        for number in range(steps):
            pair = {step: seconds(step) for step in ((dense, sparse) if number % 2 else (sparse, dense))}
            took.append((pair[dense], pair[sparse]))
    dense_s, sparse_s = (median(column) for column in zip(*took, strict=True))
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = [pool.apply(peak, (name, kind, size, device, threads)) for kind in (False, True)]
    return {
        "batch": size,
        "steps": steps,
        "masked_weights": held,
        "dense_s": dense_s,
        "sparse_s": sparse_s,
        "ratio": median(sparse_s / dense_s for dense_s, sparse_s in took),
        "masks_bytes": held,
        "dense_peak_bytes": peaks[0],
        "sparse_peak_bytes": peaks[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=BATCH, default=["xvlm-shapes", "blip-shapes"])
    parser.add_argument("--batch", type=int, help="pairs a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--note", default="", help="put into the JSON, such as what else ran")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "device": args.device, "note": args.note}
    found |= {"goal": GOAL, "sparsity": SPARSITY, "models": {}}
    if args.device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    table = Table("model", "batch", "dense", "sparse", f"ratio (goal {GOAL})", "masks", "peak dense", "peak sparse")
    for name in args.models:
        got = measure(name, args.batch or BATCH[name], args.steps, args.device, args.threads)
        found["models"][name] = got
        times = (f"{1e3 * got[key]:.1f} ms" for key in ("dense_s", "sparse_s"))
        sizes = (f"{got[key] / 1e6:.0f} MB" for key in ("masks_bytes", "dense_peak_bytes", "sparse_peak_bytes"))
        table.add_row(name, str(got["batch"]), *times, f"{got['ratio']:.3f}", *sizes)
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
