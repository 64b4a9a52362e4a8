from __future__ import annotations

import os

import pytest

from multiflow.data.batches import make_ahead


def whose(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_other_processes_make_them_in_order(workers: int) -> None:
    made = list(make_ahead(whose, iter([3, 1, 4, 1, 5, 9, 2]), workers))
    assert [number for number, _ in made] == [3, 1, 4, 1, 5, 9, 2]
    makers = {maker for _, maker in made}
    assert len(makers) == workers
    assert os.getpid() not in makers


def test_without_workers_each_is_made_when_it_is_asked_for() -> None:
    asked = []
    made = make_ahead(lambda number: asked.append(number) or whose(number), [7, 8], 0)  # type: ignore[func-returns-value]
    assert next(made) == (7, os.getpid())
    assert asked == [7]


def test_they_are_not_made_far_ahead() -> None:
    taken = []

    def numbers() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    made = make_ahead(whose, numbers(), 2)  # type: ignore[arg-type]
    next(made)
    assert len(taken) <= 1 + 2 * 2
    made.close()  # type: ignore[attr-defined]
