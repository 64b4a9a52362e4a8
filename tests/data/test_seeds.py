from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data.seeds import Stream, random_at


def test_a_function_of_its_arguments():
    first = random_at(3, Stream.MLM, 5).random(4).tolist()
    assert random_at(3, Stream.MLM, 5).random(4).tolist() == first
    others = [(4, Stream.MLM, 5), (3, Stream.ORDER, 5), (3, Stream.MLM, 6), (5, Stream.MLM, 3)]
    assert all(random_at(*other).random(4).tolist() != first for other in others)


def test_streams_have_numbers_of_their_own():
    drawn = {random_at(0, stream, 0).random() for stream in Stream}
    assert len(drawn) == len(Stream)


def test_negative_numbers_are_refused():
    with pytest.raises(MultiflowError, match="seed -1"):
        random_at(-1, Stream.MLM, 0)
