from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.methods.budgets import SCHEDULES, sparsities_of


def test_exp_drops_the_same_share_of_what_is_left_in_every_step():
    kept = [1 - s for s in sparsities_of("exp", 0.9, 60)]
    assert kept == pytest.approx([0.1 ** (t / 60) for t in range(1, 61)])


def test_linear_drops_the_same_number_in_every_step_and_ends_at_the_target():
    assert sparsities_of("linear", 0.75, 3) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", [0.0, 0.1, 0.63, 0.9, 2 / 3, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_every_schedule_grows_to_the_target_itself(schedule, target, steps):
    found = sparsities_of(schedule, target, steps)
    assert len(found) == steps
    assert found[-1] == target
    assert found == sorted(found)


def test_bad_schedules():
    with pytest.raises(MultiflowError, match="unknown schedule 'expp'; known: exp, linear; did you mean 'exp'"):
        sparsities_of("expp", 0.5, 2)
    with pytest.raises(MultiflowError, match="steps 0 was given; expected at least 1"):
        sparsities_of("exp", 0.5, 0)
