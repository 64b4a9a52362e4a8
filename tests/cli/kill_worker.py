"""What `test_prune_killed` runs in a process of its own.

Every kind of method prunes once undisturbed, into ``FOLDER/CASE-whole``, and once, into ``FOLDER/CASE``, in processes
that are ended by SIGKILL at random moments until one comes to its end. Processes are forked off this one, in which one
run without gradients has imported everything; how often they were killed goes to ``FOLDER/killed.json``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

from multiflow.cli import main

SHORT = ("--set", "steps=3", "batches_per_step=3")
CASES = {
    "forward only": ("--method", "multiflow"),
    "gradient": ("--method", "snip"),
    "steps": ("--method", "itersnip", *SHORT),
    "steps, new weights": ("--method", "chita++", *SHORT),
    "learner": ("--method", "tamt", "--set", "steps=9", "lr=0.05"),
}
KILLS = 2


def run(words: list[str], seconds: float | None = None) -> int:
    """Run the command line in a process of its own, and kill it after so long; return its exit status."""
    child = os.fork()
    if child == 0:
        os._exit(main(words))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill(case: str, model: str, data: str, folder: Path) -> dict[str, int]:
    """Run a case to its end, undisturbed and disturbed; count the kills, and those that left a checkpoint."""
    common = ["prune", model, "--data", data, "--batches", "8", "--batch-size", "2", *CASES[case]]
    common += ["--sparsity", "0.5", "0.75", "--checkpoint-every", "1", "--device", "cpu"]
    begun = time.perf_counter()
    assert run([*common, "--out", str(folder / f"{case}-whole")]) == 0
    whole = time.perf_counter() - begun
    out, counts = folder / case, {"kills": 0, "with a checkpoint": 0}
    words = [*common, "--out", str(out), "--resume"]
    while counts["kills"] < KILLS and not (out / "result.json").exists():
        if run(words, random.uniform(0.2, 0.9) * whole) == signal.SIGKILL:
            counts["kills"] += 1
            counts["with a checkpoint"] += any(out.glob("calibration*.safetensors"))
    assert (out / "result.json").exists() or run(words) == 0
    return counts


def kill_all(model: Path, data: Path, folder: Path) -> None:
    warm = ["prune", str(model), "--data", str(data), "--batches", "1", "--device", "cpu"]
    assert main([*warm, "--out", str(folder / "warm")]) == 0
    found = {case: kill(case, str(model), str(data), folder) for case in CASES}
    (folder / "killed.json").write_text(json.dumps(found))
