"""MATLAB files of level 5, as Flowers-102 has them: one matrix of whole numbers by its name, and nothing else.

Own code, for scipy's reader in C breaks down (the process ends by a signal) on files that were altered. The form is
that of MathWorks' "MAT-File Format": a header of 128 bytes, then elements, each a type, a size and that many bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

HEADER = 128  # bytes
ORDERS = {b"IM": "<", b"MI": ">"}
"""The last bytes of the header -> the order of bytes."""
MATRIX, COMPRESSED = 14, 15
MAT_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of an element -> that of its numbers."""
COMPLEX = 0x0800  # flag of a matrix
NUMERIC = range(6, 16)  # classes of matrices
MOST_ELEMENTS = 1_000


class MatElement(NamedTuple):
    """A piece of a file."""

    kind: int
    data: bytes


def read_numbers(data: bytes, name: str, most: int) -> list[int]:
    """Return the numbers of a matrix, row by row.

    Args:
        data: all of the file.
        name: of the matrix.
        most: how many numbers it may have; no more memory is taken than they need.

    Raises:
        ValueError: this is no such file, it is damaged, or holds no matrix of that name with whole numbers.
    """
    order = ORDERS.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("it is no MATLAB file of level 5")
    for element in _elements(data[HEADER:], order):
        if element.kind == COMPRESSED:
            try:
                raw = zlib.decompressobj().decompress(element.data, 8 * most + 1_000)
            except zlib.error as error:
                raise ValueError(f"it is damaged: {error}") from error
            element = next(_elements(raw, order), MatElement(0, b""))
        if element.kind == MATRIX and (found := _matrix(element.data, name, order, most)) is not None:
            return found
    raise ValueError(f"it holds no '{name}'")


def _elements(data: bytes, order: str) -> Iterator[MatElement]:
    at = 0
    for _ in range(MOST_ELEMENTS):
        if at + 8 > len(data):
            return
        kind, size = (int(word) for word in np.frombuffer(data, f"{order}u4", 2, at))
        begin = at + 8
        if kind >> 16:  # a small one: type and size share four bytes, and the data follow at once
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
        if begin + size > len(data) or (begin == at + 4 and size > 4):
            raise ValueError("it is cut, or claims more than it holds")
        yield MatElement(kind, data[begin : begin + size])
        at = begin + size if kind == COMPRESSED else begin + size + -(begin + size) % 8


def _matrix(data: bytes, name: str, order: str, most: int) -> list[int] | None:
    """The numbers of a matrix; None if it has another name."""
    parts = list(_elements(data, order))
    if len(parts) < 3 or parts[2].data != name.encode():
        return None
    if len(parts) != 4 or len(parts[0].data) != 8 or len(parts[1].data) % 4:
        raise ValueError(f"'{name}' is no plain matrix")
    flags = int(np.frombuffer(parts[0].data, f"{order}u4", 1)[0])
    shape = [int(size) for size in np.frombuffer(parts[1].data, f"{order}i4")]
    kind = MAT_NUMBERS.get(parts[3].kind)
    if kind is None or flags & COMPLEX or flags & 0xFF not in NUMERIC:
        raise ValueError(f"'{name}' holds no numbers")
    if not shape or min(shape) < 1 or math.prod(shape) > most:
        raise ValueError(f"'{name}' has the shape {shape}")
    if len(parts[3].data) != math.prod(shape) * np.dtype(kind).itemsize:
        raise ValueError(f"'{name}' holds {len(parts[3].data)} bytes, which are not {shape}")
    numbers = np.frombuffer(parts[3].data, f"{order}{kind}").reshape(shape, order="F").ravel()
    if not np.isfinite(numbers).all() or (numbers != np.trunc(numbers)).any():
        raise ValueError(f"'{name}' holds other than whole numbers")
    return [int(number) for number in numbers]
