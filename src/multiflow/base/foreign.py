"""Files that other libraries read for us, such as tokenizers and processors: what those raise becomes one sentence.

Of damaged files they raise anything, the tokenizers library even panics with what is no ``Exception``; pipes and
devices they wait for, and sizes they believe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.base.files import exists, open_regular

MOST_BYTES = 2**28  # of a file of a tokenizer or processor


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of a library for tokenizers or processors comes of the files that it reads."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def shortened(error: BaseException | None) -> str:
    """Return what an error of another library says, in one line of at most 200 characters."""
    said = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
    return said if len(said) <= 200 else said[:197] + "..."


def check_files(folder: str | Path, names: Iterable[str], what: str) -> list[str]:
    """Return which of the named files a folder holds; one that is no regular file, or too large, is refused.

    Args:
        folder: where another library is going to read.
        names: of the files that it may read there.
        what: they belong to, for errors.
    """
    held = [name for name in names if exists(Path(folder) / name)]
    for name in held:
        path = Path(folder) / name
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise MultiflowError(f"cannot read '{path}': {error.strerror or error}; check the {what}") from error
        if size > MOST_BYTES:
            raise MultiflowError(f"'{path}' has {size} bytes, too many for a {what}; copy it again")
    return held


@contextmanager
def naming_damage(what: str, fix: str, field: str | Sequence[str] = ()) -> Iterator[None]:
    """Turn whatever another library raises inside the block into one sentence.

    Args:
        what: goes wrong, as the message begins.
        fix: what to do about it.
        field: arguments that the fix names.
    """
    try:
        yield
    except MultiflowError:
        raise
    except BaseException as error:
        if not is_damage(error):
            raise
        raise MultiflowError(f"{what}: {shortened(error)}; {fix}", field=field) from error
