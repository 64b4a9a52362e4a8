from __future__ import annotations

import pytest

from multiflow.report.bench.gather import gather

from .conftest import make_cell


def bench_of(scores, tier=lambda name: "1", seeds=(0,)):
    return gather([make_cell(p, seed=s, score=score, tier=tier(p)) for p, score in scores.items() for s in seeds])


def test_the_first_tier_is_loud_and_so_is_a_winner_of_another():
    scores = {"multiflow": 70, "wanda": 60, "snip": 20, "mine": 90}
    tier = {"multiflow": "1", "wanda": "1"}
    assert bench_of(scores, lambda name: tier.get(name, "2")).loud == ["multiflow", "wanda", "mine"]
    scores["mine"] = 30
    assert bench_of(scores, lambda name: tier.get(name, "2")).loud == ["multiflow", "wanda"]


def test_no_more_than_six_are_loud():
    scores = {f"p{i}": 50 + i for i in range(9)}
    assert bench_of(scores).loud == ["p0", "p1", "p2", "p3", "p4", "p8"]


def test_without_multiflow_the_first_of_the_grid_is_told_of():
    assert bench_of({"mine": 50, "wanda": 60}).first == "mine"
    assert bench_of({}).first is None


def test_std_is_that_of_a_sample():
    bench = bench_of({"multiflow": 70}, seeds=(0, 1, 2))
    (entry,) = bench.entries.values()
    mean = sum(entry.scores) / 3
    assert entry.std == pytest.approx((sum((score - mean) ** 2 for score in entry.scores) / 2) ** 0.5)
    (alone,) = bench_of({"multiflow": 70}).entries.values()
    assert alone.std is None
