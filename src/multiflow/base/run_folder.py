"""The output folder of a run: claimed before the work begins, whole when it ends, resumable in between.

While a run goes on its folder holds ``run.json`` with the settings, and later the calibration checkpoint. At the end
``result.json`` is written last; only then the checkpoint and ``run.json`` go. A run that fails before its first
checkpoint leaves nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.files import claim_folder, write_atomically
from multiflow.cli.console import say
from multiflow.pruning.result import RESULT_FILE

RUN_FILE = "run.json"
CHECKPOINT_FILE = "calibration.safetensors"
CHECKPOINTS = "calibration*.safetensors"  # methods in steps have one for each sparsity
HALF_WRITTEN = ".*.tmp"  # left by a process that was killed while it wrote


def identity(settings: Mapping[str, Any]) -> str:
    """Hash the settings that make a run what it is: eight hexadecimal digits.

    >>> identity({"seed": 1})
    'a4bbadc1'
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def run_folder(path: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """Claim an output folder for a run, and tidy up when it ends or fails.

    Args:
        path: a new or empty folder; with ``resume`` also the folder of the same run, unfinished.
        settings: plain values that decide what the run computes.
        resume: go on with an unfinished run, or begin if there is none.

    Raises:
        MultiflowError: the folder cannot be written, or holds a finished run, one with other settings, other files, or
            without ``resume`` an unfinished run.
    """
    going_on = (path / RUN_FILE).is_file() and not (path / RESULT_FILE).is_file()
    there_before = nearest_folder(path)
    if going_on:
        _check_same_run(path, settings, resume)
        _remove(path.glob(HALF_WRITTEN))
    else:
        claim_folder(path, RESULT_FILE)
        write_atomically(path / RUN_FILE, json.dumps(settings, indent=2) + "\n")
    try:
        yield path
    except BaseException as error:
        if not going_on and not any(path.glob(CHECKPOINTS)):
            remove_made(path, there_before)
        elif isinstance(error, KeyboardInterrupt):
            say(f"'{path}' keeps what has been done; go on with the same command and --resume")
        raise
    _remove(path.glob(CHECKPOINTS))
    _remove([path / RUN_FILE])


def _remove(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink()


def _check_same_run(path: Path, settings: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        raise MultiflowError(
            f"output folder '{path}' holds an unfinished run; go on with it with --resume, or choose a new folder"
        )
    try:
        saved = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MultiflowError(f"'{path / RUN_FILE}' cannot be read ({error}); choose a new folder") from error
    given = json.loads(json.dumps(settings))
    differ = [name for name in {**saved, **given} if saved.get(name) != given.get(name)]
    if differ:
        default = "default"  # settings that have it are left out
        what = ", ".join(f"{name} ({saved.get(name, default)} then, {given.get(name, default)} now)" for name in differ)
        raise MultiflowError(
            f"output folder '{path}' holds an unfinished run with other settings: {what}; "
            "resume it with its own, or choose a new folder"
        )


def nearest_folder(path: Path) -> Path:
    """Return the path if it exists, or the nearest folder above it that does."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def remove_made(path: Path, there_before: Path) -> None:
    """Remove what a failed command has made: the content of its folder, and the folders that were not there before."""
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    place = path.absolute()
    while place != there_before and not any(place.iterdir()):
        place.rmdir()
        place = place.parent
