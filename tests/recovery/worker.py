"""What `test_ranks` runs in each of two processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: imported inside a group, its default arguments keep that group and its threads
from torch import Tensor

import multiflow as mf
from multiflow.base import parallel
from tests.small import ADAPTER, towers_batches, two_towers

BATCHES = towers_batches(4, 4, 3, 4, 2, 4, 4, 4, 1)
WAYS: dict[str, dict[str, Any]] = {
    "blocks": {"how": "blocks"},
    "blocks, three batches a step": {"how": "blocks", "batches_per_step": 3},
    "blocks, dense inputs": {"how": "blocks", "inputs": "dense"},
    "distill": {"how": "distill", "batches_per_step": 2},
    "scale": {"how": "scale"},
    "lora": {"how": "lora", "rank": 4},
    "two ways": {"how": ["blocks", "distill"]},
    "fewer batches than processes train on": {"how": "blocks", "batches": BATCHES[:2]},
}


def recovered(batches: Any = None, **given: Any) -> dict[str, Tensor]:
    """Recover the towers; give weights, and the errors as a tensor."""
    result = mf.prune(two_towers(), "magnitude", 0.8, adapter=ADAPTER)
    found = mf.recover(two_towers(), result, 0.8, batches or BATCHES, adapter=ADAPTER, **{"epochs": 3, **given})
    (report,) = found.settings["recovery"]
    assert found.weights is not None
    return {**found.weights[0.8], "loss": torch.tensor(list(report["distillation"].values()))}


def going_on(folder: Path) -> dict[str, Tensor]:
    """End all processes after two sub-blocks, and go on."""
    place = folder / "checkpoint.safetensors"
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise mf.MultiflowError("stopped")

    try:
        recovered(checkpoint=place, progress=stop)
        raise AssertionError("it was not stopped")
    except mf.MultiflowError as error:
        if "stopped" not in str(error):
            raise
    return recovered(checkpoint=place)


def with_nan() -> dict[str, Tensor]:
    batches = [dict(batch) for batch in BATCHES]
    batches[1]["pixels"] = batches[1]["pixels"] * torch.nan  # of the second process
    return recovered(batches)


def with_other_rate() -> dict[str, Tensor]:
    return recovered(lr=0.01 * (1 + parallel.rank()))


CASES: dict[str, Callable[..., Any]] = {
    **{name: lambda way=way: recovered(**way) for name, way in WAYS.items()},
    "NaN": with_nan,
    "other rate": with_other_rate,
}


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    found: dict[str, Any] = {}
    for name, case in {**CASES, "goes on": lambda: going_on(folder)}.items():
        parallel.exchange("next", name)
        try:
            found[name] = case()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found-{parallel.rank()}.pt")
    dist.destroy_process_group()
