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
