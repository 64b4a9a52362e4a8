"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from multiflow.base.errors import MultiflowError


def write_atomically(path: str | Path, data: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part; returns the path."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except OSError as error:
        raise MultiflowError(f"cannot write '{path}' ({error.strerror or error}); choose another place") from error
    finally:  # also when interrupted
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def plain(value: Any) -> Any:
    """Give a value that JSON does not know (a numpy number, a tensor, a path) as one it does: ``default=plain``."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def claim_folder(path: str | Path, marker: str) -> Path:
    """Make an output folder and return it; one that holds another run, or cannot be written, is an error.

    Args:
        path: the folder to make.
        marker: the file whose presence says that a run has ended there.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise MultiflowError(f"output folder '{path}' is a file; choose another folder")
    if path.is_dir() and any(path.iterdir()):
        what = "a finished run" if (path / marker).exists() else "other files"
        raise MultiflowError(f"output folder '{path}' already holds {what}; choose a new folder or empty this one")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MultiflowError(
            f"cannot write into output folder '{path}' ({error.strerror or error}); choose another folder"
        ) from error
    return path
