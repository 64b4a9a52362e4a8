"""Read a CTranslate2 ``model.bin``, without CTranslate2.

Little-endian: version; from version 2 on the name of the specification and its revision; how many variables, and each
as its name, its shape, from version 4 on the number of its type, its bytes; from version 3 on names that stand for
others. A text is its length, which counts a closing zero, and its bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from multiflow.base.errors import MultiflowError

TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
MOST_VARIABLES = 100_000
NEWEST = 6


def read_model(path: Path) -> dict[str, np.ndarray]:
    """Return the variables of a model by their names, those that stand for others too.

    Raises:
        MultiflowError: it is no such file, ends early, or is of a newer version.
    """
    try:
        return _Reader(memoryview(path.read_bytes()), path).variables()
    except (OSError, struct.error, UnicodeDecodeError, ValueError, IndexError, KeyError) as error:
        raise MultiflowError(f"'{path}' is no whole CTranslate2 model ({error}); fetch its package again") from error


class _Reader:
    def __init__(self, data: memoryview, path: Path) -> None:
        self._data, self._path, self._at = data, path, 0

    def variables(self) -> dict[str, np.ndarray]:
        (version,) = self._take("<I")
        if not 1 <= version <= NEWEST:
            raise ValueError(f"version {version}, expected 1 to {NEWEST}")
        if version >= 2:
            self._text()
            self._take("<I")
        (count,) = self._take("<I")
        if count > MOST_VARIABLES:
            raise ValueError(f"{count} variables")
        found = dict(self._variable(version) for _ in range(count))
        if version >= 3:
            (aliases,) = self._take("<I")
            for _ in range(aliases):
                alias, name = self._text(), self._text()
                found[alias] = found[name]
        return found

    def _variable(self, version: int) -> tuple[str, np.ndarray]:
        name = self._text()
        (rank,) = self._take("<B")
        shape = self._take(f"<{rank}I")
        if version >= 4:
            kind, size = self._take("<BI")
            dtype = np.dtype(TYPES[kind])
        else:
            width, items = self._take("<BI")
            dtype, size = np.dtype({4: np.float32, 2: np.int16, 1: np.int8}[width]), width * items
        value = np.frombuffer(self._bytes(size), dtype.newbyteorder("<")).reshape(shape)
        return name, value

    def _text(self) -> str:
        (length,) = self._take("<H")
        return bytes(self._bytes(length)).decode("utf-8").rstrip("\0")

    def _take(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _bytes(self, count: int) -> memoryview:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError(f"it ends after {len(self._data)} bytes")
        self._at += count
        return taken
