"""What a grid works with: models, tokenizers and calibration batches, opened as the command line opens them, and data.

Data that a grid makes itself when they are missing are Shapes and handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import read_json
from multiflow.base.runs import locked
from multiflow.base.strict import build, changed
from multiflow.bench.config import ModelEntry
from multiflow.families import opening
from multiflow.families.batches import Counted, Source, open_batches
from multiflow.families.opening import Preprocessing, find_model, open_model
from multiflow.worlds.digits.vit import write_digits
from multiflow.worlds.shapes import write


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


@dataclass(frozen=True)
class ShapesData:
    """The settings of ``multiflow shapes``."""

    out: str
    train: int = 20000
    val: int = 1000
    test: int = 1000
    size: int = 64
    seed: int = 0
    style: str = "plain"
    downstream_style: str = "chalk"
    shard_size: int = 1000


@dataclass(frozen=True)
class DigitsData:
    """Where scikit-learn's digits go, a folder a class."""

    out: str


KINDS: Mapping[str, tuple[type, Callable[..., Path]]] = {
    "shapes": (ShapesData, write),
    "digits": (DigitsData, write_digits),
}
"""Kind of data -> its settings, and what writes it to a folder."""


def check_make(make: Mapping[str, Mapping[str, Any]]) -> None:
    """Check kinds and settings of the data to make.

    Raises:
        MultiflowError: an unknown kind or setting, or a folder that holds data made otherwise.
    """
    for kind, how in make.items():
        if kind not in KINDS:
            raise unknown("kind of data under make", kind, KINDS)
        build(KINDS[kind][0], how, f"make.{kind}")
        _check_there(kind, how)


def _check_there(kind: str, how: Mapping[str, Any]) -> None:
    """Make sure that Shapes which are there already are those of the config."""
    path = folder_of(how) / "dataset.json"
    if kind != "shapes" or not path.exists():
        return
    there, asked = read_json(path), vars(ShapesData(**how))
    if not isinstance(there, dict):
        raise MultiflowError(f"'{path}' does not say what the data are; delete the folder, or choose another")
    for name, value in asked.items():
        if name != "out" and there.get(name) != value:
            raise MultiflowError(
                f"'{how['out']}' holds Shapes with {name} {there.get(name)}, and make.shapes asks for {value}; choose "
                "another folder"
            )


def make_data(make: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Make what is missing: each folder appears whole, and of several runners one makes it."""
    for kind, how in make.items():
        out = folder_of(how)
        with locked(out.with_name(f".{out.name}.lock")):
            if not _is_there(out):
                say(f"makes {kind} in {out}")
                KINDS[kind][1](out, **{name: value for name, value in how.items() if name != "out"})


def folder_of(how: Mapping[str, Any]) -> Path:
    return Path(how["out"]).expanduser()


def _is_there(out: Path) -> bool:
    return out.exists() and any(out.iterdir())


def is_missing(path: str, make: Mapping[str, Mapping[str, Any]]) -> bool:
    folders = [folder_of(how) for how in make.values()]
    return any(Path(path).expanduser().is_relative_to(out) and not _is_there(out) for out in folders)


def made_settings(path: str, make: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return how data at a path are made, without their place; None for data that the grid does not make."""
    place = Path(path).expanduser()
    for kind, how in make.items():
        if place.is_relative_to(out := folder_of(how)):
            settings = changed(build(KINDS[kind][0], how, f"make.{kind}"), ("out",))
            return {kind: settings, "part": place.relative_to(out).as_posix()}
    return None
