"""The folder of results: records as lines of JSON, and the locks under which several runners share one folder.

A line has a checksum, is appended under a lock and forced to the disk. What a kill tears off, a last line without its
end, is passed over by readers and cut off by the next writer. Locks are the system's: they end with the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from multiflow.base.artifacts import line_of, read_line
from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_regular, write_atomically
from multiflow.base.runs import locked
from multiflow.bench.records import Cell, Pruning, read_record

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
