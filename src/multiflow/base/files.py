"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from multiflow.base.errors import MultiflowError


def write_atomically(path: str | Path, data: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part; returns the path.

    ``data`` may be a function that writes to the path which it is given: what is large need not be held twice.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(data):
            temporary.touch()
            mode = temporary.stat().st_mode  # as for any file here; safetensors lets the owner alone read its own
            data(temporary)
            temporary.chmod(mode)
        else:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise MultiflowError(f"cannot write '{path}' ({said}); choose another place") from error
    finally:  # also when interrupted
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def plain(value: Any) -> Any:
    """Give a value that JSON does not know (a numpy number, a tensor, a path) as one it does: ``default=plain``."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
