"""Refit against the normal equations, row by row; iterated L-OBS written out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import pytest
import torch

import multiflow as mf
from multiflow.base.types import NofM, Pattern, PerRow, Unstructured
from multiflow.methods import find_pruner
from multiflow.methods.least_squares import damped, refit
from multiflow.methods.lobs import lobs
from multiflow.methods.multiflow import multiflow
from multiflow.methods.refit import multiflow_refit
from multiflow.pruning.fitter import choose_part


def problem(rows=6, columns=12, seed=0):
    """Weights, and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    moment = inputs.T @ inputs / len(inputs)
    return torch.randn(rows, columns, generator=generator), (moment + moment.T) / 2


@dataclass(frozen=True)
class Dropping:
    """A budget as a fitter is given it, of a layer that no model has."""

    count: int
    pattern: Pattern
    layer: str = "tower.fc1"

    def __call__(self, scores, done=1.0):
        return choose_part(scores, done, count=self.count, pattern=self.pattern)

    def within(self, scores, count):
        return choose_part(scores, count=count, pattern=self.pattern)


def dropping(count, pattern=None):
    return Dropping(count, pattern or Unstructured())


def best_on(mask, weight, moment):
    """The least squares of every row by a system as large as what the row keeps."""
    solved = torch.zeros(weight.shape, dtype=torch.float64)
    weight, moment = weight.double(), moment.double()
    for i, kept in enumerate(mask):
        if kept.any():
            solved[i, kept] = torch.linalg.solve(moment[kept][:, kept], moment[kept] @ weight[i])
    return solved


def error(weight, other, moment):
    away = (other - weight).double()
    return float(((away @ moment.double()) * away).sum())


def random_mask(shape, share=0.4, seed=3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (6, 12), (40, 9)])
def test_refit_solves_the_normal_equations(shape):
    weight, moment = problem(*shape)
    mask, moment = random_mask(shape), damped(moment, 1e-2)
    expected = best_on(mask, weight, moment)
    found = refit(weight.double(), mask, moment.double(), 200)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_twenty_iterations_in_float32_come_within_a_percent_of_the_least_error():
    weight, moment = problem(64, 192)
    mask, moment = random_mask((64, 192), 0.25), damped(moment, 1e-2)
    least, plain = (error(weight, x, moment) for x in (best_on(mask, weight, moment), weight * mask))
    assert error(weight, refit(weight, mask, moment, 20), moment) - least < 0.01 * (plain - least)


def test_every_iteration_lowers_the_error():
    weight, moment = problem(8, 30)
    mask, moment = random_mask((8, 30)), damped(moment, 1e-2)
    errors = [error(weight, refit(weight, mask, moment, n), moment) for n in range(12)]
    assert errors[0] == pytest.approx(error(weight, weight * mask, moment))
    assert all(after < before for before, after in pairwise(errors))


def test_the_start_does_not_matter_in_the_end():
    weight, moment = problem()
    mask, moment = random_mask(weight.shape), damped(moment, 1e-2)
    one, other = (refit(weight.double(), mask, moment.double(), 200, start) for start in (None, weight.double() * 3))
    torch.testing.assert_close(one, other)


def test_a_full_mask_changes_nothing_and_an_empty_row_stays_empty():
    weight, moment = problem()
    mask = torch.ones_like(weight, dtype=torch.bool)
    assert torch.equal(refit(weight, mask, damped(moment, 1e-2), 20), weight)
    mask[2] = False
    found = refit(weight, mask, damped(moment, 1e-2), 20)
    assert found.isfinite().all()
    assert not found[2].any()


def test_dropped_weights_are_positive_zeros():
    weight, moment = problem()
    mask = random_mask(weight.shape)
    found = refit(-weight, mask, damped(moment, 1e-2), 5)
    assert (found == 0).any()
    assert not torch.signbit(found[found == 0]).any()


def test_inputs_that_are_never_there():
    weight, moment = problem()
    moment[3], moment[:, 3] = 0, 0
    for second in (moment, torch.zeros_like(moment)):
        mask, found = lobs(weight, dropping(40), input_moment=second)
        assert found.isfinite().all()
        assert int((~mask).sum()) == 40
    mask, _ = lobs(weight, dropping(6), input_moment=moment, ridge=1e-6)
    assert not mask[:, 3].any()


@pytest.mark.parametrize("method", ["lobs", "multiflow-refit"])
@pytest.mark.parametrize("ridge", [0.0, -1.0, float("-1e-30")])
def test_a_ridge_that_is_not_positive_is_refused(method, ridge):
    with pytest.raises(mf.MultiflowError, match=f"ridge={ridge} was given; expected a number above 0"):
        find_pruner(method).settings({"ridge": ridge})


def test_a_ridge_too_small_for_few_tokens_says_so():
    inputs = torch.randn(10, 512, generator=torch.Generator().manual_seed(0)) + 30
    moment = inputs.T @ inputs / len(inputs)
    with pytest.raises(mf.MultiflowError, match="'tower.fc1' .* ridge 1e-07; raise ridge, to 0.01"):
        lobs(torch.randn(8, 512), dropping(3), input_moment=moment, ridge=1e-7)


def test_the_inputs_are_left_alone():
    weight, moment = problem()
    before = weight.clone(), moment.clone()
    lobs(weight, dropping(30), input_moment=moment)
    multiflow_refit(weight, dropping(30), input_moment=moment)
    assert torch.equal(weight, before[0])
    assert torch.equal(moment, before[1])


def test_multiflow_refit_keeps_what_multiflow_keeps():
    weight, moment = problem()
    mask, found = multiflow_refit(weight.double(), dropping(50), input_moment=moment.double(), iterations=200)
    scores = multiflow(weight, input_norm=moment.diagonal().sqrt())
    assert torch.equal(mask, scores > scores.flatten().kthvalue(50).values)
    torch.testing.assert_close(found, best_on(mask, weight, damped(moment.double(), 1e-2)), rtol=1e-6, atol=1e-8)


def by_hand(weight, moment, count, rounds, ridge=1e-2):
    """Iterated L-OBS with an explicit inverse, a full sort and a system for every row."""
    moment = moment.double() + ridge * moment.double().diagonal().mean() * torch.eye(len(moment))
    inverse, size = torch.linalg.inv(moment), weight.numel()
    found, kept = weight.double(), [True] * size
    for done in range(1, rounds + 1):
        scores = (found / inverse.diagonal().sqrt()).abs().flatten().tolist()
        goal = count if done == rounds else round(size * (1 - (1 - count / size) ** (done / rounds)))
        order = sorted(range(size), key=lambda i: (kept[i], scores[i], i))
        for i in order[:goal]:
            kept[i] = False
        mask = torch.tensor(kept).view(weight.shape)
        found = best_on(mask, weight, moment)
    return mask, found


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 40, 66])
def test_lobs_by_hand(rounds, count):
    weight, moment = problem()
    mask, found = lobs(weight.double(), dropping(count), input_moment=moment.double(), rounds=rounds, iterations=200)
    expected, solved = by_hand(weight, moment, count, rounds)
    assert torch.equal(mask, expected)
    torch.testing.assert_close(found, solved, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_rounds_come_close_to_the_best_of_all_supports(seed):
    """One row of ten weights of which six go: all 210 supports, each with the best weights that it can have."""
    weight, moment = problem(1, 10, seed)
    moment = damped(moment, 1e-6)

    def least(support):
        mask = torch.zeros(1, 10, dtype=torch.bool)
        mask[0, list(support)] = True
        return error(weight, best_on(mask, weight, moment), moment)

    ranked = sorted(map(least, combinations(range(10), 4)))
    options = {"rounds": 6, "ridge": 1e-9, "iterations": 200}
    mask, found = lobs(weight.double(), dropping(6), input_moment=moment.double(), **options)
    reached = error(weight, found, moment)
    assert reached == pytest.approx(least(mask[0].nonzero().flatten().tolist()), rel=1e-3)
    assert reached < ranked[len(ranked) // 3]


def test_more_rounds_and_a_refit_each_lower_the_error():
    weight, moment = problem(64, 96)
    choose = dropping(round(0.9 * weight.numel()))
    mask, fitted = multiflow_refit(weight, choose, input_moment=moment)
    assert error(weight, fitted, moment) < 0.9 * error(weight, weight * mask, moment)
    errors = [error(weight, lobs(weight, choose, input_moment=moment, rounds=n)[1], moment) for n in (1, 2, 5, 20)]
    assert errors[0] < error(weight, weight * mask, moment)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4), NofM(4, 32), PerRow()])
def test_patterns(pattern):
    weight, moment = problem(5, 64)
    count = 5 * 48 if isinstance(pattern, PerRow) else 0
    mask, found = lobs(weight, dropping(count, pattern), input_moment=moment)
    if isinstance(pattern, PerRow):
        assert set((~mask).sum(1).tolist()) == {48}
    else:
        assert set(mask.reshape(-1, pattern.of).sum(1).tolist()) == {pattern.keep}
    assert not found[~mask].any()
    once = lobs(weight, dropping(count, pattern), input_moment=moment, rounds=1)[1]
    assert error(weight, found, moment) < error(weight, once, moment)


def test_ties_go_by_position():
    weight, moment = torch.ones(3, 4), torch.eye(4)
    mask, _ = lobs(weight, dropping(7), input_moment=moment, rounds=3)
    assert mask.flatten().tolist() == [False] * 7 + [True] * 5


@pytest.mark.parametrize("pattern", [Unstructured(), PerRow(), NofM(1, 8)])
def test_what_is_gone_stays_gone(pattern):
    count, gone = {Unstructured: 100, PerRow: 80, NofM: 0}[type(pattern)], []
    weight, moment = problem(5, 24)
    choose = dropping(count, pattern)

    def watched(scores, done):
        gone.append(~choose(scores, done))
        return ~gone[-1]

    lobs(weight, watched, input_moment=moment, rounds=7)
    assert all(bool((before & ~after).sum() == 0) for before, after in pairwise(gone))
    shares = [float(mask.float().mean()) for mask in gone]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_rounds_below_one_are_refused():
    with pytest.raises(mf.MultiflowError, match="rounds=0 was given; expected at least 1"):
        find_pruner("lobs").settings({"rounds": 0})


@pytest.mark.parametrize("ridge", [1e-8, 1e-6, 1e-4])
def test_few_tokens_and_hardly_any_damping_leave_no_nan(ridge):
    """Ten tokens say nothing of 54 of 64 inputs; rounding makes some directions curve the wrong way."""
    inputs = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    weight, moment = torch.randn(30, 64, generator=torch.Generator().manual_seed(2)), inputs.T @ inputs / 10
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) > 0.7
    found = refit(weight, mask, damped(moment, ridge), 20)
    assert found.isfinite().all()
    assert error(weight, found, moment) < 0.1 * error(weight, weight * mask, moment)
