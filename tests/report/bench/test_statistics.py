from __future__ import annotations

import numpy as np
import pytest

from multiflow.report.bench.statistics import MOST_ITEMS, Difference, common_seeds, differences, interval


def simulated(generator, seeds, items, effect=0.0):
    """Two pruners: some items are harder for one of them whatever the seed, trainings have some luck."""
    harder = generator.normal(0, 20, items)
    draws = {
        name: {
            seed: 60 + generator.normal(0, 1) + generator.normal(0, 30, items) + (name == "b") * (harder + effect)
            for seed in range(seeds)
        }
        for name in "ab"
    }
    return differences(draws)["a", "b"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_pruners_are_within_noise_about_95_times_of_100(seeds):
    generator = np.random.default_rng(3)
    share = np.mean([simulated(generator, seeds, 150).noise for _ in range(200)])
    assert 0.91 <= share <= 0.99


@pytest.mark.parametrize("seeds", [1, 3])
def test_ten_points_are_found(seeds):
    generator = np.random.default_rng(4)
    found = [simulated(generator, seeds, 400, effect=-10.0) for _ in range(50)]
    assert np.mean([difference.low > 0 for difference in found]) >= 0.9
    assert np.mean([difference.value for difference in found]) == pytest.approx(10, abs=1)


def test_one_seed_agrees_with_the_normal_interval():
    generator = np.random.default_rng(0)
    a, b = generator.normal(50, 10, 400), generator.normal(48, 10, 400)
    found = differences({"a": {0: a}, "b": {0: b}})["a", "b"]
    half = 1.96 * (a - b).std() / 20
    assert found.value == pytest.approx((a - b).mean())
    assert found.low == pytest.approx(found.value - half, abs=0.12)
    assert found.high == pytest.approx(found.value + half, abs=0.12)


def test_items_are_paired():
    items = np.random.default_rng(0).normal(50, 30, 200)
    found = differences({"a": {0: items + 1.0}, "b": {0: items}})["a", "b"]
    assert (found.low, found.high) == (1.0, 1.0)  # a small difference that is the same everywhere is no luck
    low, high = interval({0: items})
    assert high - low > 6


def test_seeds_that_differ_widen_the_interval():
    items = np.random.default_rng(0).normal(50, 10, 200)
    calm = differences({"a": dict.fromkeys(range(3), items + 2.0), "b": dict.fromkeys(range(3), items)})["a", "b"]
    wild = differences({"a": {s: items + 6.0 * s - 4.0 for s in range(3)}, "b": dict.fromkeys(range(3), items)})[
        "a", "b"
    ]
    assert calm.value == wild.value == pytest.approx(2.0)
    assert not calm.noise
    assert wild.noise


def test_the_same_data_give_the_same_intervals_in_any_company():
    generator = np.random.default_rng(0)
    data = {name: {s: generator.normal(50, 10, 60) for s in (0, 1)} for name in "abc"}
    alone = differences({name: data[name] for name in "ab"})["a", "b"]
    assert differences(data)["a", "b"] == alone
    assert differences({"b": data["b"], "a": data["a"]})["b", "a"] == -alone


def test_only_shared_seeds_with_as_many_items_count():
    a = {0: np.ones(10), 1: np.ones(10), 2: np.ones(10)}
    b = {1: np.zeros(10), 2: np.zeros(11), 3: np.zeros(10)}
    assert common_seeds(a, b) == (1,)
    assert differences({"a": a, "b": b})["a", "b"] == Difference(1.0, 1.0, 1.0, (1,))
    assert differences({"a": {0: np.ones(10)}, "b": {1: np.ones(10)}}) == {}


def test_many_items_are_resampled_in_blocks():
    each = np.random.default_rng(0).normal(50, 10, 3 * MOST_ITEMS + 7)
    low, high = interval({0: each})
    half = 1.96 * each.std() / len(each) ** 0.5
    assert low == pytest.approx(each.mean() - half, abs=0.03)
    assert high == pytest.approx(each.mean() + half, abs=0.03)
