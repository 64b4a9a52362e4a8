"""How long update methods take, said before they start: counted layer by layer, and divided by measured rates."""

from __future__ import annotations

import pytest

import multiflow as mf
from multiflow.methods import PRUNERS, LayerCost, find_pruner
from multiflow.methods.costs import inversion, product, refitting
from multiflow.pruning import fitter
from multiflow.pruning.estimate import Estimate, Rates, duration, measure_rates
from tests.small import ADAPTER, chain, every, two_towers

UNIT = Rates(1.0, 1.0, 1.0, 1.0)
FITTERS = [name for name, pruner in PRUNERS.items() if pruner.kind == "fitter"]


def test_costs_add_up_and_are_multiplied_but_not_what_is_held():
    one = LayerCost(products=2, solves=3, small=5, moved=7, held=11) + LayerCost(products=1, held=2)
    assert one == LayerCost(3, 3, 5, 7, 11)
    assert 2 * one == one * 2 == LayerCost(6, 6, 10, 14, 11)


def test_work_is_counted_as_its_formulas_say():
    assert product(5, 10).products == 2 * 5 * 10 * 10
    assert refitting(5, 10, 20).products == 21 * 2 * 5 * 10 * 10
    assert inversion(10).solves == 1000
    refit = find_pruner("multiflow-refit")
    assert refit.cost_of(5, 10, 0.5, refit.hyper).products == 21 * 1000
    assert refit.cost_of(5, 10, 0.5, {**refit.hyper, "iterations": 3}).products == 4 * 1000
    admm = find_pruner("admm")
    assert admm.cost_of(5, 10, 0.5, admm.hyper).solves == 1000


@pytest.mark.parametrize("method", FITTERS)
def test_every_method_counts_more_for_more_rows_and_columns(method):
    pruner = find_pruner(method)
    if pruner.cost is None:
        pytest.skip("nobody has counted it")
    small, tall, wide = (pruner.cost_of(*shape, 0.25, pruner.hyper) for shape in ((64, 128), (128, 128), (64, 256)))
    assert UNIT.seconds(small) < UNIT.seconds(tall) < UNIT.seconds(wide)
    assert 1.2 < tall.products / small.products <= 2.05
    assert 3.9 < wide.products / small.products < 4.1


def test_the_update_methods_are_counted():
    assert {name for name in FITTERS if PRUNERS[name].cost} >= {
        *("exchange", "alps", "sparsegpt", "lobs", "admm", "multiflow-refit"),
    }


def test_the_fast_mode_of_exchange_costs_no_more_than_alps():
    exchange, alps = find_pruner("exchange"), find_pruner("alps")
    fast = exchange.cost_of(768, 768, 0.25, {**exchange.hyper, "panels": 0})
    whole = exchange.cost_of(768, 768, 0.25, exchange.hyper)
    for kind in ("products", "solves"):
        assert getattr(fast, kind) <= getattr(alps.cost_of(768, 768, 0.25, alps.hyper), kind)
    assert fast.small == fast.held == 0
    assert UNIT.seconds(fast) < UNIT.seconds(whole)
    assert exchange.cost_of(768, 3072, 0.25, exchange.hyper).small == 0  # too dear for exact solutions: the fast mode


def test_seconds_are_those_of_all_layers_and_sparsities(monkeypatch):
    asked = []
    monkeypatch.setattr(fitter, "measure_rates", lambda threads: asked.append(threads) or UNIT)
    model, pruner = two_towers(), find_pruner("lobs")
    shapes = [layer.shape for layer in ADAPTER.layout(model).layers]
    found = mf.estimate(model, "lobs", [0.5, 0.75], adapter=ADAPTER, rounds=3)
    hyper = {**pruner.hyper, "rounds": 3}
    each = [UNIT.seconds(pruner.cost_of(*shape, kept, hyper)) for kept in (0.5, 0.25) for shape in shapes]
    assert found.seconds == pytest.approx(sum(each))
    assert (found.layers, found.sparsities, asked) == (len(shapes), 2, [found.threads])
    one, two = (mf.estimate(model, "lobs", s, adapter=ADAPTER).memory for s in (0.5, [0.5, 0.75]))
    assert two - one == 4 * ADAPTER.layout(model).size


def test_what_it_says():
    said = str(Estimate(500.0, 4_120_000_000, 2, 168, 1))
    assert said == "about 8 min for 168 layers on 2 threads, and 4.12 GB beside the model"
    assert str(Estimate(None, 10**9, 1, 2, 3)).startswith("an unknown time for 2 layers at 3 sparsities on one thread")
    assert [duration(x) for x in (0.2, 99, 101, 5999, 6100)] == ["1 s", "99 s", "2 min", "100 min", "1.7 h"]


def test_methods_of_ones_own_that_count_nothing_and_other_kinds():
    @mf.fitter("uncounted")
    def uncounted(weight, choose):
        """Say."""
        return choose(weight.abs()), weight

    assert mf.estimate(two_towers(), "uncounted", 0.5, adapter=ADAPTER).seconds is None
    with pytest.raises(mf.MultiflowError, match=r"layer by layer \(.*exchange.*'wanda' is a scorer"):
        mf.estimate(two_towers(), "wanda", 0.5, adapter=ADAPTER)


def test_rates_are_measured_and_positive():
    rates = measure_rates(1)
    assert min(rates.products, rates.solves, rates.small, rates.moved) > 1e6
    assert measure_rates(1) is rates


def test_the_time_is_announced_before_the_first_batch(monkeypatch, caplog):
    caplog.set_level("INFO", logger="multiflow")
    monkeypatch.setattr(fitter, "measure_rates", lambda threads: UNIT)
    monkeypatch.setattr(fitter, "MENTIONED", 0)
    model = chain(8, 8)

    def none():
        raise mf.MultiflowError("a batch was asked for")
        yield

    with pytest.raises(mf.MultiflowError, match="a batch was asked for"):
        mf.prune(model, "lobs", 0.5, none(), adapter=every(model))
    seconds = mf.estimate(model, "lobs", 0.5, adapter=every(model)).seconds
    assert f"lobs takes: {duration(seconds)}, besides running the model" in caplog.messages
