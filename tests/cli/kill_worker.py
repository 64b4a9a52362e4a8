"""What `test_prune_killed` runs in a process of its own.

Every kind of method prunes once undisturbed, into ``FOLDER/CASE-whole``, and once, into ``FOLDER/CASE``, in processes
that are ended by SIGKILL: the first while it writes a later checkpoint, so that there is an earlier one to go on from,
the second at a random moment. Processes are forked off this one, in which one run without gradients has imported
everything; how often they were killed goes to ``FOLDER/killed.json``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
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
CHECKPOINT = "calibration"  # what its file names begin with


def run(words: list[str], *, checkpoints: int | None = None, seconds: float | None = None) -> int:
    """Run the command line in a process of its own; return its exit status.

    It is killed while it puts one checkpoint more than so many in its place, or after so many seconds.
    """
    child = os.fork()
    if child == 0:
        if checkpoints is not None:
            sys.addaudithook(die_after(checkpoints))
        os._exit(main(words))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def die_after(checkpoints: int) -> Callable[[str, tuple[object, ...]], None]:
    """An audit hook that lets so many checkpoints be written, and kills its process at the next one."""
    written = iter(range(checkpoints))

    def hook(event: str, given: tuple[object, ...]) -> None:
        if event == "os.rename" and Path(str(given[1])).name.startswith(CHECKPOINT) and next(written, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def kill(case: str, model: str, data: str, folder: Path) -> dict[str, int]:
    """Run a case to its end, undisturbed and disturbed; count the kills, and those that left a checkpoint."""
    common = ["prune", model, "--data", data, "--batches", "8", "--batch-size", "2", *CASES[case]]
    common += ["--sparsity", "0.5", "0.75", "--checkpoint-every", "1", "--device", "cpu"]
    begun = time.perf_counter()
    assert run([*common, "--out", str(folder / f"{case}-whole")]) == 0
    whole = time.perf_counter() - begun
    out, counts = folder / case, {"kills": 0, "with a checkpoint": 0}
    words = [*common, "--out", str(out), "--resume"]
    for checkpoints, seconds in ((random.randint(1, 3), None), (None, random.uniform(0.2, 0.9) * whole)):
        status = run(words, checkpoints=checkpoints, seconds=seconds)
        assert status in (0, signal.SIGKILL), (case, status)
        if status:
            counts["kills"] += 1
            counts["with a checkpoint"] += any(out.glob(f"{CHECKPOINT}*.safetensors"))
    assert (out / "result.json").exists() or run(words) == 0
    return counts


def kill_all(model: Path, data: Path, folder: Path) -> None:
    warm = ["prune", str(model), "--data", str(data), "--batches", "1", "--device", "cpu"]
    assert main([*warm, "--out", str(folder / "warm")]) == 0
    found = {case: kill(case, str(model), str(data), folder) for case in CASES}
    (folder / "killed.json").write_text(json.dumps(found))
