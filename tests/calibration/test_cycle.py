from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from multiflow.base.errors import MultiflowError
from multiflow.calibration import Cycle


class Stream(IterableDataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


class Unsized:
    """An iterable that can be iterated again and has no length."""

    def __init__(self, items) -> None:
        self.items, self.begun = items, 0

    def __iter__(self):
        self.begun += 1
        return iter(self.items)


def takes(batches, each, times, taken=0):
    cycle = Cycle(batches, each, taken)
    return [list(cycle.take()) for _ in range(times)]


@pytest.mark.parametrize("kind", [list, tuple, Unsized])
def test_batch_after_batch_and_from_the_beginning_again(kind):
    assert takes(kind("abc"), 2, 4) == [["a", "b"], ["c", "a"], ["b", "c"], ["a", "b"]]


@pytest.mark.parametrize("kind", [list, Unsized])
def test_none_comes_twice_in_a_step(kind):
    assert takes(kind("abc"), 9, 3) == [["a", "b", "c"]] * 3
    assert takes(kind("abc"), 3, 2) == [["a", "b", "c"]] * 2
    assert takes(kind("a"), 2, 2) == [["a"]] * 2


@pytest.mark.parametrize("kind", [list, Unsized])
@pytest.mark.parametrize("each", [1, 2, 3, 7])
def test_goes_on_where_it_stood(kind, each):
    straight, cycle = takes(kind("abcde"), each, 9), Cycle(kind("abcde"), each)
    for done, of in enumerate(straight):
        assert takes(kind("abcde"), each, 9 - done, cycle.taken) == straight[done:]
        assert list(cycle.take()) == of
    assert cycle.taken == sum(map(len, straight))


def test_loaders_with_and_without_a_length():
    for loader in (DataLoader(torch.arange(3), batch_size=None), DataLoader(Stream(3), batch_size=None)):
        assert [[int(x) for x in of] for of in takes(loader, 2, 3)] == [[0, 1], [2, 0], [1, 2]]


def test_batches_are_made_as_they_are_taken():
    made = []
    cycle = Cycle((made.append(i) or i for i in range(5)), 2)
    taking = cycle.take()
    assert made == []
    assert next(taking) == 0
    assert made == [0]
    assert (list(taking), made) == ([1], [0, 1])


def test_a_new_pass_begins_only_when_a_batch_is_asked_for():
    batches = Unsized("ab")
    takes(batches, 2, 3)
    assert batches.begun == 3


def test_a_generator_serves_one_pass_and_is_told_when_it_is_spent():
    cycle = Cycle(iter("abc"), 2)
    assert list(cycle.take()) == ["a", "b"]
    with pytest.raises(MultiflowError, match="a generator that was used up before; pass a list"):
        list(cycle.take())


@pytest.mark.parametrize("batches", [[], iter([]), Unsized([])])
def test_no_batches(batches):
    with pytest.raises(MultiflowError, match="there are no calibration batches"):
        list(Cycle(batches, 2).take())
