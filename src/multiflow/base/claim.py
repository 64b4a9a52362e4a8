"""The folder of a run belongs to its settings: written when it starts, compared when it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically

SETTINGS = "settings.json"


def claim_run(out_dir: Path, settings: Any, *, resume: bool, free: Collection[str] = ()) -> None:
    """Write the settings into a new run's folder; check them against those of a run that is resumed.

    Args:
        out_dir: folder of the run.
        settings: a dataclass of plain values.
        resume: whether the folder may hold a run of these settings.
        free: names of settings that may differ when a run is resumed.

    Raises:
        MultiflowError: the folder cannot be written, holds a run and ``resume`` is off, or one of other settings.
    """
    path = out_dir / SETTINGS
    given = asdict(settings)
    if not path.exists():
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(given, indent=1) + "\n")
        except OSError as error:
            raise MultiflowError(f"cannot write to {out_dir}: {error.strerror}; choose another folder") from error
        return
    if not resume:
        raise MultiflowError(
            f"{out_dir} already holds a run; resume it (resume=True, --resume) or choose another folder"
        )
    stored = _stored(path)
    for name, value in given.items():
        if name not in free and stored.get(name) != value:
            raise MultiflowError(
                f"{out_dir} was started with {name}={stored.get(name)}, not {value}; "
                f"resume it with its own settings or choose another folder"
            )


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MultiflowError(f"'{path}' cannot be read ({error}); choose another folder") from error
    if not isinstance(stored, dict):
        raise MultiflowError(f"'{path}' holds no settings but {type(stored).__name__}; choose another folder")
    return stored


@contextmanager
def claimed_run(
    out_dir: Path, settings: Any, *, resume: bool, free: Collection[str] = (), worth: Collection[str]
) -> Iterator[None]:
    """Claim the folder of a run as `claim_run` does; a new run that fails early inside the block leaves nothing.

    Args:
        out_dir: folder of the run; one of another purpose, which holds other files, is refused.
        settings: as of `claim_run`, like ``resume`` and ``free``.
        resume: see there.
        free: see there.
        worth: patterns of files and folders that make a failed run worth keeping, such as checkpoints.

    Raises:
        MultiflowError: as in `claim_run`; the folder holds other files.
    """
    new = not (out_dir / SETTINGS).exists()
    absent = [place for place in (out_dir, *out_dir.parents) if not place.exists()]
    before = set(out_dir.iterdir()) if out_dir.is_dir() else set()
    if new and any(not entry.name.startswith(".") for entry in before):
        raise MultiflowError(f"output folder '{out_dir}' already holds other files; choose a new folder or empty it")
    claim_run(out_dir, settings, resume=resume, free=free)
    try:
        yield
    except BaseException:
        if new and not any(list(out_dir.glob(pattern)) for pattern in worth):
            for entry in set(out_dir.iterdir()) - before:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for place in absent:
                with suppress(OSError):  # somebody else has put something there
                    place.rmdir()
        raise


def flags(settings: Any) -> str:
    """Write the settings that differ from their defaults as options of the command line.

    >>> from multiflow.worlds.shapes.models import PretrainSettings
    >>> flags(PretrainSettings(family="blip", steps=100))
    ' --family blip --steps 100'
    """
    plain = asdict(type(settings)())
    changed = {name: value for name, value in asdict(settings).items() if value != plain[name]}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
