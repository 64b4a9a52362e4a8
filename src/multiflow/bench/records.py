"""What a benchmark leaves in its folder: a `Cell` for every fine-tuned model, a `Pruning` for every set of masks.

Both are lines of JSON: ``cells.jsonl`` and ``prunings.jsonl`` (docs/formats.md). A line is appended under a lock and
forced to the disk. What a kill tears off, a last line without its end, is passed over by readers and cut off by the
next writer. Locks are the operating system's, under which several runners share a folder: they end with the process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from multiflow.base.artifacts import line_of, read_line
from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_regular, write_atomically
from multiflow.base.runs import locked

DENSE = "dense"
DEMO_FILE = "demo.json"  # the record of a demo


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a model pruned or dense, fine-tuned for a task and evaluated."""

    id: str  # hash of `settings`, in which alone two cells differ
    model: str  # its name in the grid
    pruner: str  # its name in the grid; ``dense`` for the baseline
    sparsity: float  # share of zeros among the prunable weights; 0 for the baseline
    task: str  # ``retrieval``, ``captioning``, ``vqa`` or ``classification``
    seed: int  # of calibration, of new weights and of training
    tier: str  # the tier of the grid that the cell belongs to
    error: str | None = None  # what went wrong, in one line; None for a cell that has figures
    score: float | None = None  # the task's main figure on the test data, in percent (CIDEr above 100 too)
    metric: str = ""  # name of the main figure
    figures: Mapping[str, float] = field(default_factory=dict)  # all figures on the test data
    each: Sequence[float] = ()  # the main figure of each test item, whose mean is `score`
    curve: Sequence[tuple[int, float]] = ()  # (step, main figure on the validation data) on the way
    seconds: Mapping[str, float] = field(default_factory=dict)  # ``finetune`` and ``evaluate``
    # what the model costs where the cell was computed: seconds of a `forward` and of the dense one (`dense_forward`),
    # bytes of the weights of both (`memory`, `dense_memory`); nothing where it was not measured
    cost: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int = 0  # of the process that computed the cell, in bytes
    steps: int = 0  # optimizer steps
    pruning: str | None = None  # id of the pruning; None for the baseline
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that decide
    git: str | None = None  # revision of the checkout, with ``+`` where it had changes; None outside one
    machine: str = ""  # where it was computed, in words
    finished: str = ""  # ISO time, UTC
    settings: Mapping[str, Any] = field(default_factory=dict)  # everything on which the figures depend


@dataclass(frozen=True)
class Pruning:
    """One calibration and selection: the masks of all sparsities that a pruner made of a model with a seed."""

    id: str  # hash of the settings on which the masks depend
    model: str  # its name in the grid
    pruner: str  # its name in the grid
    seed: int  # of the calibration data, the batches' order and the pruner
    # seconds of the pass over the data; 0 for pruners that need none. Pruners that share statistics share the pass,
    # and each states its whole cost
    calibration: float
    selection: float  # seconds of scores, budgets and masks of all sparsities together
    pairs: int  # calibration pairs
    peak_memory: int  # of the process, in bytes
    layers: Sequence[tuple[str, str, int]]  # (name, group, number of weights) in the order of the layout
    zeros: Mapping[float, Sequence[int]]  # sparsity -> number of dropped weights of each layer
    # of the libraries that decide; nothing in lines that do not say them
    versions: Mapping[str, str] = field(default_factory=dict)
    git: str | None = None  # revision of the checkout, with ``+`` where it had changes; None outside one
    machine: str = ""  # where it was computed, in words


def read_record(kind: type[Cell] | type[Pruning], line: Mapping[str, Any]) -> Any:
    """Return the record that a line of JSON holds.

    Raises:
        MultiflowError: the line lacks a field, or has one that is unknown or of another type: another version wrote it.
    """
    values = dict(line)
    try:
        if unknown := values.keys() - kind.__dataclass_fields__.keys():
            raise msgspec.ValidationError(f"it has '{min(unknown)}'")
        record = msgspec.convert(values, kind, str_keys=True)
        if isinstance(record, Pruning):
            _check_zeros(record)
        elif not all(map(math.isfinite, (record.score or 0.0, *record.each))):
            raise msgspec.ValidationError("its score is no finite number")
        return record
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
        said = str(error).replace("`", "'")
        raise MultiflowError(
            f"a line of results is not a {kind.__name__.lower()} as this version writes it ({said}); "
            "compute the grid anew with this version, or report it with the one that wrote it"
        ) from None


MOST_BYTES = 2**30  # of a file of records
CELLS, PRUNINGS, GRID, CONFIG = "cells.jsonl", "prunings.jsonl", "grid.jsonl", "config.yaml"


@dataclass(frozen=True)
class Results:
    """A folder of results."""

    # holds ``cells.jsonl``, ``prunings.jsonl``, ``grid.jsonl`` (the cells that the config asks for, without figures)
    # and ``config.yaml``, and what is not to be kept: ``masks``, ``stats``, ``runs``, ``errors`` and ``locks``
    folder: Path

    def append(self, record: Cell | Pruning) -> None:
        path = self.folder / (CELLS if isinstance(record, Cell) else PRUNINGS)
        line = line_of(asdict(record)).encode()
        with self.lock(path.name), path.open("ab+") as file:
            _cut_torn(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def cells(self) -> dict[str, Cell]:
        """Return the cells by id: of each the last line with figures, or the last one if all have failed."""
        found: dict[str, Cell] = {}
        for cell in self._read(Cell, CELLS):
            if cell.error is None or cell.id not in found or found[cell.id].error is not None:
                found[cell.id] = cell
        return found

    def cell(self, id: str) -> Cell | None:
        found = [cell for cell in self._read(Cell, CELLS, f'"{id}"') if cell.id == id]
        return next((cell for cell in reversed(found) if cell.error is None), found[-1] if found else None)

    def prunings(self) -> dict[str, Pruning]:
        """Return the prunings by id: the last line of each, with the zeros of all."""
        found: dict[str, Pruning] = {}
        for pruning in self._read(Pruning, PRUNINGS):
            before = found[pruning.id].zeros if pruning.id in found else {}
            found[pruning.id] = replace(pruning, zeros={**before, **pruning.zeros})
        return found

    def expect(self, cells: Iterable[Cell]) -> None:
        write_atomically(self.folder / GRID, "".join(line_of(asdict(cell)) for cell in cells))

    def expected(self) -> list[Cell]:
        return list(self._read(Cell, GRID))

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock inside the block; yields whether it was got, which without ``wait`` it may not be."""
        with locked(self.folder / "locks" / f"{name}.lock", wait=wait) as got:
            yield got

    def _read(self, kind: type[Cell] | type[Pruning], name: str, having: str = "") -> Iterator[Any]:
        """Read the records of a file, those whose line holds some text."""
        path = self.folder / name
        *lines, torn = _text(path).split("\n")
        if _is_whole(torn[:-1]):  # followed by what was the end of the line
            lines.append(torn)
        for number, line in enumerate(lines, 1):
            if having in line:
                yield read_record(kind, read_line(line, f"line {number} of '{path}'", "delete the line"))


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return read_regular(path, MOST_BYTES).decode(errors="replace")
    except OSError as error:
        raise MultiflowError(
            f"cannot read '{path}' ({error.strerror or error}); check the folder of results"
        ) from error


def _is_whole(line: str) -> bool:
    try:
        return bool(read_line(line, "it", ""))
    except MultiflowError:
        return False


def _cut_torn(file: Any) -> None:
    """Cut off a last line that has no end."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _check_zeros(pruning: Pruning) -> None:
    sizes = [size for *_, size in pruning.layers]
    for sparsity, zeros in pruning.zeros.items():
        if len(zeros) != len(sizes) or not all(0 <= z <= size for z, size in zip(zeros, sizes, strict=True)):
            raise msgspec.ValidationError(f"its zeros at {sparsity:g} are not those of {len(sizes)} layers")
