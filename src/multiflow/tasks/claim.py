"""The folder of a run belongs to its settings: written when it starts, compared when it goes on."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multiflow.errors import MultiflowError


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
    path = out_dir / "settings.json"
    given = asdict(settings)
    if not path.exists():
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(given, indent=1) + "\n")
        except OSError as error:
            raise MultiflowError(f"cannot write to {out_dir}: {error.strerror}; choose another folder") from error
        return
    if not resume:
        raise MultiflowError(f"{out_dir} already holds a run; resume it or choose another folder")
    stored = json.loads(path.read_text())
    for name, value in given.items():
        if name not in free and stored.get(name) != value:
            raise MultiflowError(
                f"{out_dir} was started with {name}={stored.get(name)}, not {value}; "
                f"resume it with its own settings or choose another folder"
            )


def flags(settings: Any) -> str:
    """Write the settings that differ from their defaults as options of the command line.

    >>> from multiflow.tasks.pretrain import PretrainSettings
    >>> flags(PretrainSettings(family="blip", steps=100))
    ' --family blip --steps 100'
    """
    plain = asdict(type(settings)())
    changed = {name: value for name, value in asdict(settings).items() if value != plain[name]}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
