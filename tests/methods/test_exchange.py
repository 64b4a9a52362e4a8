"""Supports and exchanges against least squares written out row by row."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import multiflow as mf
from multiflow.base.types import NofM, PerRow, Unstructured
from multiflow.methods import find_pruner
from multiflow.methods.exchange import Search, affordable, exchange, first_mask
from multiflow.methods.least_squares import damped, scaled
from multiflow.methods.lobs import lobs
from multiflow.methods.supports import Chain, Supports, invert
from tests.methods.test_refit import best_on, dropping, error, problem, random_mask


def rows_of(rows=7, columns=40, share=0.4, seed=0, dtype=torch.float64):
    weight, moment = problem(rows, columns, seed)
    layer = scaled(weight.to(dtype), moment.to(dtype), 1e-2)
    return layer, Supports.of(layer.moment, layer.weight, random_mask(weight.shape, share), 5)


def errors(state, layer):
    away = best_on(state.kept, layer.weight, layer.moment) - layer.weight.double()
    return ((away @ layer.moment.double()) * away).sum(1)


def solves(state, layer, tolerance=1e-8):
    torch.testing.assert_close(
        state.dense().double(), best_on(state.kept, layer.weight, layer.moment), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("size", [1, 5, 48, 49, 130])
def test_inverses(size):
    numbers = torch.randn(3, size, 2 * size, generator=torch.Generator().manual_seed(0)).double()
    moments = numbers @ numbers.mT
    torch.testing.assert_close(invert(moments) @ moments, torch.eye(size).double().expand(3, -1, -1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_the_start_solves_every_row(share):
    layer, state = rows_of(share=share)
    solves(state, layer)


def chain_of(state, few=9, most=4, drops=6):
    slope = state.slope().masked_fill(state.kept, 0.0)
    columns = slope.abs().topk(few, 1).indices
    chain = Chain(state, columns, slope, most)
    chain.enter()
    chain.leave(drops, 30)
    return chain


@pytest.mark.parametrize("seed", range(3))
def test_every_step_of_a_chain_is_what_it_says(seed):
    layer, state = rows_of(seed=seed)
    before, mask = errors(state, layer), state.kept
    chain = chain_of(state)
    other = Supports(state.moment, state.weight, chain.place.clone(), state.solved, state.values)
    torch.testing.assert_close(before - errors(other, layer), chain.falls.sum(1), rtol=1e-5, atol=1e-7)
    assert torch.equal(other.kept.sum(1) - mask.sum(1), chain.on.sum(1))
    for number in range(6):
        between = errors(other, layer)
        costs = [error_without(other, layer, row) for row in range(len(mask))]
        other.place.scatter_(1, chain.gone[:, number, None], other.width)
        torch.testing.assert_close(errors(other, layer) - between, torch.stack(costs), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(chain.rises[:, number], torch.stack(costs), rtol=1e-5, atol=1e-7)


def test_fewer_may_come_in_and_those_that_go_are_among_the_cheapest():
    layer, state = rows_of()
    before, mask = errors(state, layer), state.kept
    slope = state.slope().masked_fill(mask, 0.0)
    chain = Chain(state, slope.abs().topk(9, 1).indices, slope, 4)
    counts = torch.tensor([0, 1, 2, 3, 4, 1, 2])
    chain.enter(counts)
    assert torch.equal(chain.on.sum(1), counts)
    chain.leave(2, 2)
    chain.keep(counts * 0, counts > 0)
    falls = torch.stack([chain.falls[row, :n].sum() for row, n in enumerate(counts)])
    torch.testing.assert_close(before - errors(state, layer), falls, rtol=1e-5, atol=1e-7)
    assert torch.equal(state.kept.sum(1) - mask.sum(1), counts)
    solves(state, layer, 1e-6)


def error_without(state, layer, row):
    """The least that the error of a row rises by when one of its weights goes."""
    now = errors(state, layer)[row]
    rises = []
    for slot in range(state.place.shape[1]):
        if state.place[row, slot] < state.width:
            place = state.place.clone()
            place[row, slot] = state.width
            rises.append(errors(Supports(state.moment, state.weight, place, None, None), layer)[row] - now)
    return torch.stack(rises).min()


def test_a_chain_is_kept_as_far_as_it_is_good():
    layer, state = rows_of()
    mask, before = state.kept, errors(state, layer)
    chain = chain_of(state)
    drops = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    good = torch.tensor([True, True, True, False, True, True, True])
    chain.keep(drops, good)
    solves(state, layer, 1e-6)
    assert torch.equal(state.kept[3], mask[3])
    assert torch.equal((state.kept.sum(1) - mask.sum(1))[good], (chain.on.sum(1) - drops)[good])
    change = torch.stack([chain.rises[row, :n].sum() for row, n in enumerate(drops)]) - chain.falls.sum(1)
    torch.testing.assert_close((errors(state, layer) - before)[good], change[good], rtol=1e-5, atol=1e-7)
    kept = state.place[5] < state.width
    own = state.place[5][kept]
    torch.testing.assert_close(
        state.solved[5][kept][:, kept], torch.linalg.inv(layer.moment[own][:, own]), rtol=1e-5, atol=1e-6
    )
    assert not state.solved[5][~kept].any()
    assert not state.solved[5][:, ~kept].any()


@pytest.mark.parametrize("pattern", [Unstructured(), PerRow(), NofM(2, 4), NofM(1, 8)])
def test_patterns_and_counts(pattern):
    weight, moment = problem(12, 64)
    count = {Unstructured: 701, PerRow: 12 * 48, NofM: 0}[type(pattern)]
    mask, found = exchange(weight, dropping(count, pattern), input_moment=moment)
    if isinstance(pattern, NofM):
        assert set(mask.reshape(-1, pattern.of).sum(1).tolist()) == {pattern.keep}
    else:
        assert int((~mask).sum()) == count
    if isinstance(pattern, PerRow):
        assert set(mask.sum(1).tolist()) == {16}
    assert not found[~mask].any()
    assert not torch.signbit(found[~mask]).any()
    expected = best_on(mask, weight, damped(moment, 1e-3))
    assert error(weight, found, damped(moment, 1e-3)) == pytest.approx(
        error(weight, expected, damped(moment, 1e-3)), rel=1e-4
    )
    other = lobs(weight, dropping(count, pattern), input_moment=moment, ridge=1e-3)[1]
    assert error(weight, found, moment) < error(weight, other, moment)


@pytest.mark.parametrize("count", [0, 1, 5, 300, 767, 768])
def test_any_budget(count):
    weight, moment = problem(12, 64)
    mask, found = exchange(weight, dropping(count), input_moment=moment)
    assert int((~mask).sum()) == count
    assert found.isfinite().all()


@pytest.mark.parametrize("seed", range(8))
def test_one_row_is_among_the_best_of_all(seed):
    weight, moment = problem(1, 12, seed)
    moment = damped(moment, 1e-3)
    _, found = exchange(weight, dropping(7, PerRow()), input_moment=moment, ridge=1e-9)
    reached = error(weight, found, moment)

    def least(support):
        other = torch.zeros(1, 12, dtype=torch.bool)
        other[0, list(support)] = True
        return error(weight, best_on(other, weight, moment), moment)

    assert reached <= sorted(map(least, combinations(range(12), 5)))[40]


def test_every_exchange_is_downhill():
    weight, moment = problem(24, 64)
    choose = dropping(round(0.8 * weight.numel()))
    found = [
        error(weight, exchange(weight, choose, input_moment=moment, panels=n)[1], damped(moment, 1e-3))
        for n in (1, 2, 4, 40)
    ]
    assert found[-1] < found[0]
    pattern = dropping(24 * 51, PerRow())
    found = [
        error(weight, exchange(weight, pattern, input_moment=moment, panels=n)[1], damped(moment, 1e-3))
        for n in (1, 2, 4, 40)
    ]
    assert found == sorted(found, reverse=True)


def test_inputs_that_are_never_there():
    weight, moment = problem()
    moment[3], moment[:, 3] = 0, 0
    for second in (moment, torch.zeros_like(moment)):
        mask, found = exchange(weight, dropping(40), input_moment=second)
        assert found.isfinite().all()
        assert int((~mask).sum()) == 40
    assert not exchange(weight, dropping(6), input_moment=moment, ridge=1e-6)[0][:, 3].any()


def test_few_tokens_and_a_small_ridge_are_solved_in_float64():
    inputs = torch.randn(10, 512, generator=torch.Generator().manual_seed(0)) + 30
    moment = inputs.T @ inputs / len(inputs)
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    mask, found = exchange(weight, dropping(3000), input_moment=moment, ridge=1e-4)
    assert int((~mask).sum()) == 3000
    assert error(weight, found, moment) < 0.01 * error(weight, weight * 0, moment)


def test_a_moment_without_inverse_says_so():
    moment = torch.eye(16) + 3 * (torch.ones(16, 16) - torch.eye(16))
    for panels in (0, 8):
        with pytest.raises(mf.MultiflowError, match="'tower.fc1' .* ridge 0.001; raise ridge, to 0.01"):
            exchange(torch.randn(8, 16), dropping(60), input_moment=moment, panels=panels)


def test_layers_that_are_too_dear_stay_with_the_first_mask(monkeypatch):
    monkeypatch.setattr("multiflow.methods.exchange.DEAREST", 0)
    weight, moment = problem(12, 64)
    mask, found = exchange(weight, dropping(500), input_moment=moment)
    assert not affordable(mask)
    assert int((~mask).sum()) == 500
    assert torch.equal(mask, first_mask(scaled(weight, moment, 1e-3), dropping(500), 40, 1e-3)[0])
    assert error(weight, found, moment) < 1.05 * error(
        weight, lobs(weight, dropping(500), input_moment=moment)[1], moment
    )


def test_groups_of_rows_keep_the_budget(monkeypatch):
    weight, moment = problem(30, 64)
    one = exchange(weight, dropping(1500), input_moment=moment)
    monkeypatch.setattr("multiflow.methods.exchange.HELD", 7 * 40**2)
    mask, found = exchange(weight, dropping(1500), input_moment=moment)
    assert int((~mask).sum()) == 1500
    assert error(weight, found, moment) < 1.1 * error(weight, one[1], moment)


def test_the_inputs_are_left_alone():
    weight, moment = problem()
    before = weight.clone(), moment.clone()
    exchange(weight, dropping(30), input_moment=moment)
    assert torch.equal(weight, before[0])
    assert torch.equal(moment, before[1])


@pytest.mark.parametrize("hyper", [{"start": 0}, {"panels": -1}, {"ridge": 0.0}])
def test_what_gives_no_mask_is_refused(hyper):
    with pytest.raises(mf.MultiflowError, match="was given; expected"):
        find_pruner("exchange").settings(hyper)


def test_search_meets_its_budget_from_either_side():
    for excess in (-9, 9):
        layer, state = rows_of()
        kept = int(state.kept.sum())
        Search(state, Unstructured(), excess).run(0)
        assert int(state.kept.sum()) == kept - excess
        solves(state, layer, 1e-5)
