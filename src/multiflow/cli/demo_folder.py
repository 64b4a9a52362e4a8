"""The output folder of a demo: whole or not there, and only ever in the place of an earlier demo."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.report.values import DEMO_FILE, REPORT_FILE


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that takes its place when all went well, and vanishes otherwise.

    Raises:
        MultiflowError: ``out`` cannot be written, or holds anything that no demo wrote.
    """
    place = Path(os.path.realpath(out))  # a link keeps pointing where it does
    check_replaceable(place, out)
    made = [parent for parent in place.parents if not parent.exists()]
    new, old = (place.with_name(f".{place.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        check_replaceable(place, out)
        _swap(new, place, old)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        for parent in made:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise MultiflowError(
                f"cannot write output folder '{out}' ({error.strerror or error}); choose another one with --out DIR"
            ) from error
        raise


def check_replaceable(place: Path, out: Path) -> None:
    """Make sure that a folder is not there, empty, or the work of an earlier demo and nothing else."""
    if place.exists() and not place.is_dir():
        raise MultiflowError(f"output folder '{out}' is a file; choose another one with --out DIR")
    there = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    if not there:
        return
    wrote = written_by_demo(place)
    foreign = next((path for path in there if path not in wrote), None)
    if foreign is not None:
        raise MultiflowError(
            f"output folder '{out}' holds '{foreign}', which no demo wrote; move it, or choose another folder with "
            "--out DIR"
        )


def written_by_demo(place: Path) -> set[str]:
    """Return the files that an earlier demo says it wrote into a folder; none where there was no demo."""
    try:
        listed = json.loads((place / DEMO_FILE).read_text(encoding="utf-8"))["files"]
        return {DEMO_FILE, REPORT_FILE, *listed}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _swap(new: Path, place: Path, old: Path) -> None:
    """Put a folder in the place of another one, which goes; if that fails the other one stays."""
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
