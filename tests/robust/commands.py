"""Every command that writes, with what it reads and where it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Setting(NamedTuple):
    """What commands read."""

    model: Path
    world: Path
    mask: Path
    config: Path
    grid: Path


class Place(NamedTuple):
    """Where commands write: a disk of its own, and why it takes no more."""

    disk: Path
    kind: str

    @property
    def may_stay(self) -> tuple[str, ...]:
        """Endings of files that say what a run was, with which it can go on once there is space."""
        return ("run.json", "settings.json", ".lock")


def prune(method: str, *more: str) -> Callable[[Setting, Path], list[str]]:
    def words(given: Setting, out: Path) -> list[str]:
        data = ["--data", str(given.world / "pretrain" / "cc3m"), "--batches", "2", "--batch-size", "4"]
        how = ["--method", method, "--sparsity", "0.5", "--checkpoint-every", "1"]
        return ["prune", str(given.model), *data, *how, *more, "--out", str(out)]

    return words


def finetune(given: Setting, out: Path) -> list[str]:
    data = ["--data", str(given.world / "coco"), "--preset", "shapes", "--steps", "2", "--batch-size", "4"]
    few = ["--limit", "4", "--precision", "fp32"]
    return ["finetune", "retrieval", str(given.model), "--mask", str(given.mask), *data, *few, "--out", str(out)]


def pairs(given: Setting) -> list[str]:
    return ["--data", str(given.world / "pretrain" / "cc3m"), "--batch-size", "2", "--batches", "2"]


def recover(given: Setting, out: Path) -> list[str]:
    few = ["--mask", str(given.mask), "--how", "scale", "--epochs", "1"]
    return ["recover", str(given.model), *pairs(given), *few, "--device", "cpu", "--out", str(out)]


def compare(given: Setting, out: Path) -> list[str]:
    few = ["--methods", "magnitude", "--sparsity", "0.5", "--held-out", "1", "--device", "cpu"]
    return ["compare", str(given.model), *pairs(given), *few, "--out", str(out)]


def speed(given: Setting, out: Path) -> list[str]:
    few = ["--forms", "dense-fp32", "--samples", "1", "--seconds", "0.1"]
    return ["speed", str(given.model), *few, "--out", str(out)]


def demo(given: Setting, out: Path) -> list[str]:
    few = ["--scenes", "8", "--shortlist", "4", "--batches", "1", "--batch-size", "3", "--examples", "2"]
    return ["demo", "--model", str(given.model), "--sparsity", "0.5", *few, "--out", str(out)]


COMMANDS: dict[str, Callable[[Setting, Path], list[str]]] = {
    "prune": prune("multiflow"),
    "prune-lobs": prune("lobs"),
    "prune-steps": prune("itersnip", "--set", "steps=2", "batches_per_step=1"),
    "apply": lambda given, out: ["apply", str(given.model), str(given.mask), "--out", str(out)],
    "export": lambda given, out: ["export", str(given.model), "--mask", str(given.mask), "--out", str(out)],
    "export-folder": lambda given, out: [
        *["export", str(given.model), "--mask", str(given.mask), "--format", "folder", "--out", str(out)],
    ],
    "recover": recover,
    "compare": compare,
    "shrink": lambda given, out: ["shrink", str(given.model), "--method", "magnitude", "--out", str(out)],
    "speed": speed,
    "shapes": lambda given, out: ["shapes", str(out), "--train", "24", "--val", "4", "--test", "4"],
    "pretrain": lambda given, out: ["pretrain", str(out), "--vision-steps", "2", "--steps", "2"],
    "digits": lambda given, out: ["digits", str(out), "--images-only"],
    "finetune": finetune,
    "evaluate": lambda given, out: [
        *["evaluate", "retrieval", str(given.model), "--data", str(given.world / "coco"), "--limit", "4"],
        *["--save", str(out)],
    ],
    "demo": demo,
    "bench run": lambda given, out: ["bench", "run", str(given.config), "--out", str(out), "--device", "cpu"],
    "bench report": lambda given, out: ["bench", "report", str(given.grid), "--out", str(out)],
}
"""Name -> the words of a command that writes to a place."""

READ_ALONE = ("show", "doctor", "completion")
"""Commands that write nothing but what they print."""
