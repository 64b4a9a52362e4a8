"""Recovery by two processes against recovery by one; `worker` holds what the two do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.processes import fork_two
from tests.recovery import worker
from tests.recovery.worker import WAYS, recovered


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """What both processes found, case by case."""
    folder = tmp_path_factory.mktemp("two")
    fork_two(worker.main, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def both(found, case):
    one, other = (of[case] for of in found)
    assert isinstance(one, dict), one
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    return one


@pytest.mark.parametrize("case", WAYS)
def test_two_processes_find_what_one_finds_up_to_rounding(case, found):
    ours, alone = both(found, case), recovered(**WAYS[case])
    assert list(ours) == list(alone)
    for name, value in ours.items():
        torch.testing.assert_close(value, alone[name], rtol=2e-3, atol=2e-4)


def test_two_processes_go_on_to_the_same_bits(found):
    ours, whole = both(found, "goes on"), both(found, "blocks")
    assert all(torch.equal(value, whole[name]) for name, value in ours.items())


def test_what_ends_one_process_ends_both(found):
    assert all("is nan in batch 2" in of["NaN"] for of in found)
    assert all("have different settings" in of["other rate"] for of in found)
