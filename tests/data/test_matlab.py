"""MATLAB files: what scipy writes is read, what was altered is a ValueError and never the end of the process."""

from __future__ import annotations

import io
import zlib
from random import Random

import numpy as np
import pytest

from multiflow.data.matlab import read_numbers

savemat = pytest.importorskip("scipy.io").savemat


def saved(compressed: bool, **matrices: np.ndarray) -> bytes:
    file = io.BytesIO()
    savemat(file, matrices, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_matrices_of_every_type_are_read_row_by_row(kind, compressed):
    data = saved(compressed, a=np.ones((1, 3)), trnid=np.array([[3, 1, 4], [1, 5, 9]], kind), other=np.ones((50, 2)))
    assert read_numbers(data, "trnid", 10) == [3, 1, 4, 1, 5, 9]
    assert read_numbers(data, "a", 10) == [1, 1, 1]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones((1, 11)), "shape"),
        (np.array([[1.5]]), "whole numbers"),
        (np.array([[np.nan]]), "whole numbers"),
        (np.array([[1 + 2j]]), "no plain matrix|no numbers"),
        (np.array(["text"]), "no numbers"),
        (np.zeros((0, 3)), "shape"),
        ({"b": 1}, "no plain matrix|no numbers"),
    ],
)
def test_other_matrices_are_refused(value, said, compressed):
    with pytest.raises(ValueError, match=said):
        read_numbers(saved(compressed, a=value), "a", 10)


def test_what_is_no_such_file_or_has_no_such_matrix():
    whole = saved(False, a=np.ones((1, 3)))
    for data in (b"", b"x" * 300, whole[:120], b"\x89HDF\r\n\x1a\n" + bytes(600)):
        with pytest.raises(ValueError, match="level 5"):
            read_numbers(data, "a", 10)
    with pytest.raises(ValueError, match="holds no 'b'"):
        read_numbers(whole, "b", 10)
    with pytest.raises(ValueError, match="cut"):
        read_numbers(whole[:-20], "a", 10)


def test_a_bomb_takes_no_memory():
    bomb = zlib.compress(bytes(50_000_000))
    data = saved(False)[:128] + np.array([15, len(bomb)], "<u4").tobytes() + bomb
    with pytest.raises(ValueError, match="cut|holds no"):
        read_numbers(data, "a", 10)


@pytest.mark.parametrize("compressed", [False, True])
def test_altered_files_are_read_or_refused(compressed):
    whole, random = saved(compressed, a=np.arange(1, 9), b=np.ones((2, 2))), Random(0)
    for _ in range(2_000):
        data = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(120, len(data))] = random.choice((0, 1, 15, 127, 128, 255, random.randrange(256)))
        try:
            assert all(type(number) is int for number in read_numbers(bytes(data), "a", 100))
        except ValueError:
            continue
