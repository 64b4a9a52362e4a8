"""Models, tokenizers and calibration batches as the command line opens them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.bench.config import ModelEntry
from multiflow.families import opening
from multiflow.families.batches import Counted, Source, open_batches
from multiflow.families.opening import Preprocessing, find_device, find_model, open_model, quiet_transformers

__all__ = ["calibration_batches", "find_device", "find_model", "load", "load_beside", "quiet_transformers"]


def load(model: ModelEntry) -> nn.Module:
    """Return a pretrained model of the grid, on the CPU.

    A process loads it once for the checks and for all cells that follow one another: whoever changes it makes a copy.
    """
    place = Path(find_model(model.source))
    files = [place] if place.is_file() else sorted(place.glob("*"))
    return _load(model, tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=1)
def _load(model: ModelEntry, files: tuple[tuple[str, int, int], ...]) -> nn.Module:
    return open_model(find_model(model.source), model.family, model.config)


def load_beside(entry: ModelEntry, model: Any) -> Preprocessing:
    return opening.load_preprocessing(entry.tokenizer, find_model(entry.source), model)


def calibration_batches(entry: ModelEntry, model: nn.Module, seed: int) -> Counted:
    if entry.calibration is None:
        raise MultiflowError(f"model '{entry.source}' has no calibration data; give some under calibration")
    given = entry.calibration
    source = Source(
        given.data, given.images, entry.tokenizer, given.batches, given.batch_size, seed,
        given.split, given.augment, given.workers,
    )  # fmt: skip
    return open_batches(model, find_model(entry.source), source)
