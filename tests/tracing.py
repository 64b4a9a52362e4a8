"""Which files of the package a call enters: those in which at least one function is called.

What runs while a module of the package is imported (its own lines, class bodies, decorators) does not count.

    python -m tests.tracing       # mf.prune of a plain module and of a tiny X-VLM, and the command line
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

import multiflow as mf
from multiflow.cli import main
from multiflow.worlds.shapes import write
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.small import ADAPTER, towers_batches, two_towers
from tests.tiny import SMALL

HOME = str(Path(mf.__file__).parent)


@contextmanager
def entered_files() -> Iterator[set[str]]:
    """Yield a set that fills with the files that any thread enters in the block, by their path in the package."""
    found: set[str] = set()

    def watch(frame: Any, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(HOME) and path[len(HOME) + 1 :] not in found and not _imports(frame):
            found.add(path[len(HOME) + 1 :])

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _imports(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(HOME):
            return True
        frame = frame.f_back
    return False


def entered_by_pruning_a_module() -> set[str]:
    """Return the files that ``mf.prune(model, "multiflow", ...)`` of any module enters, with an adapter."""
    model, batches = two_towers(), towers_batches()
    mf.prune(model, "multiflow", [0.5, 0.75], batches, adapter=ADAPTER)  # imports what the first call imports
    with entered_files() as files:
        mf.prune(model, "multiflow", [0.5, 0.75], batches, adapter=ADAPTER)
    return files


def entered_by_pruning_xvlm() -> set[str]:
    """Return the files that it enters for an X-VLM; the files of the model itself are among them."""
    model = shapes_model(SMALL, len(shapes_tokenizer("xvlm"))).eval()
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
    size = SMALL.image_size
    batches = [{"pixel_values": torch.randn(2, 3, size, size), "input_ids": ids, "attention_mask": (ids > 0).long()}]
    mf.prune(model, "multiflow", [0.5, 0.75], batches)
    with entered_files() as files:
        mf.prune(model, "multiflow", [0.5, 0.75], batches)
    return files


def entered_by_command(folder: Path) -> set[str]:
    """Return the files that ``multiflow prune`` of an X-VLM enters, its data in the layout of the release."""
    tokenizer = shapes_tokenizer("xvlm")
    shapes_model(SMALL, len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    data = write(folder / "world", train=8, val=2, test=2, size=SMALL.image_size) / "coco"
    args = ["prune", str(folder / "model"), "--data", str(data), "--batches", "2", "--batch-size", "2", "--out"]
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        assert main([*args, str(folder / "first")]) == 0
        with entered_files() as files:
            assert main([*args, str(folder / "again")]) == 0
    return files


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for what, files in (
            ("mf.prune of a module", entered_by_pruning_a_module()),
            ("mf.prune of an X-VLM", entered_by_pruning_xvlm()),
            ("multiflow prune", entered_by_command(Path(made))),
        ):
            print(f"{what} enters {len(files)} files:", *sorted(files), sep="\n  ")
