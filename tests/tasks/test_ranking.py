from __future__ import annotations

import doctest

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.metrics import recall, top1
from multiflow.tasks import ranking


def test_recall_by_hand():
    ranks = torch.tensor([0, 0, 1, 4, 5, 9, 10, 2**31 - 1])
    assert recall(ranks) == (25.0, 50.0, 75.0)
    assert recall(ranks, [2]) == (37.5,)
    assert recall(torch.tensor([0, 3, 3])) == pytest.approx((100 / 3, 100, 100))


def test_top1_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [1.0, 2.0, 3.0]])
    assert top1(logits, torch.tensor([0, 0, 1, 2])) == 75.0
    assert top1(logits[:1].bfloat16(), torch.tensor([2])) == 0.0


@pytest.mark.parametrize(("logits", "labels"), [((2, 3), (3,)), ((2, 3), (2, 1)), ((2,), (2,)), ((0, 3), (0,))])
def test_shapes_that_do_not_fit_are_named(logits, labels):
    with pytest.raises(MultiflowError) as error:
        top1(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))
    assert f"logits of shape {logits} and labels of shape {labels}" in str(error.value)


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_ranks_that_are_no_list_are_named(shape):
    with pytest.raises(MultiflowError, match="one rank per query") as error:
        recall(torch.zeros(shape, dtype=torch.long))
    assert str(shape) in str(error.value)


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(ranking, extraglobs={"torch": torch}).failed == 0
