from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflow.base.errors import MultiflowError
from multiflow.data.sampling import RegionPlan, Stream, item_order, random_at


def test_every_item_once_in_another_order_each_epoch():
    first, second = (item_order(50, 0, epoch, Stream.ORDER, True) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert item_order(5, 0, 0, Stream.ORDER, False).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    most=st.integers(1, 6),
    batch_size=st.integers(1, 11),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_text_once_and_every_batch_full(counts, most, batch_size, epoch, shuffle):
    plan = RegionPlan(np.array(counts), most, batch_size, seed=0, shuffle=shuffle)
    total = sum(min(count, most) for count in counts)
    assert plan.batches == math.ceil(total / batch_size)
    used: dict[int, list[int]] = {}
    for number in range(plan.batches):
        slots = plan.slots(epoch, number)
        assert sum(len(places) for _, places in slots) == min(batch_size, total - number * batch_size)
        for item, places in slots:
            used.setdefault(item, []).extend(places)
    assert used == {item: list(range(min(count, most))) for item, count in enumerate(counts)}


def test_the_texts_of_an_item():
    plan = RegionPlan(np.array([3, 20]), 5, 4, seed=0, shuffle=True)
    texts = plan.texts(1, epoch=0, first=1)
    assert texts[0] == 0
    assert sorted(texts) == list(range(20))
    assert texts.tolist() == plan.texts(1, epoch=0, first=1).tolist()
    assert texts.tolist() != plan.texts(1, epoch=1, first=1).tolist()
    assert RegionPlan(np.array([3]), 5, 4, seed=0, shuffle=False).texts(0, 0, 0).tolist() == [0, 1, 2]


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
