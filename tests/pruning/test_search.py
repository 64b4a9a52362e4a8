"""``allocation="search"``: budgets by evolution, judged by the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.methods.search import MOST, budget_of, mutated, search, sizes_of_levels
from tests.small import ADAPTER, towers_batches, two_towers

BATCHES = towers_batches(*[4] * 6)


def prune(method="magnitude-layer", sparsity=0.7, batches=BATCHES, **more):
    return mf.prune(two_towers(), method, sparsity, batches, adapter=ADAPTER, **{"allocation": "search", **more})


def quick(layout, sparsity, *, fitness):
    """A search of your own, of a few generations."""
    return search(layout, [sparsity], fitness=fitness, generations=6, children=4)[0]


def apart(result, sparsity=0.7):
    dense, sparse = two_towers(), two_towers()
    result.apply_(sparse, sparsity)
    with torch.no_grad():
        return sum(float((dense(**b) - sparse(**b)).square().sum()) for b in BATCHES)


@pytest.mark.parametrize("method", ["magnitude-layer", "multiflow", "lobs"])
def test_it_beats_equal_shares_at_the_same_number_of_zeros(method):
    found, equal = prune(method), prune(method, allocation="uniform")
    zeros = [sum(map(of.masks[0.7].dropped, of.masks[0.7])) for of in (found, equal)]
    assert zeros[0] == zeros[1]
    assert apart(found) < 0.9 * apart(equal)
    assert len(set(found.masks[0.7].group_sparsities().values())) > 1  # groups have traded
    assert found.settings["allocation"] == "search"


def test_the_model_is_left_as_it_is_and_the_seed_decides():
    model = two_towers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = [
        mf.prune(model, "magnitude-layer", 0.7, BATCHES, adapter=ADAPTER, allocation=quick, seed=seed).masks[0.7]
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("method", ["magnitude-layer", "lobs"])
@pytest.mark.parametrize("after", [1, 4])
def test_a_search_that_is_ended_goes_on_to_the_same_budgets(method, after, tmp_path):
    place = tmp_path / "checkpoint.safetensors"

    def stop(what, done, total):
        if (what, done) == ("search", after):
            raise KeyboardInterrupt

    whole = prune(method, allocation=quick)
    with pytest.raises(KeyboardInterrupt):
        prune(method, allocation=quick, checkpoint=place, progress=stop)
    assert list(tmp_path.glob("*search-0.7*"))
    told = []
    again = prune(method, allocation=quick, checkpoint=place, progress=lambda *of: told.append(of))
    assert again.masks[0.7] == whole.masks[0.7]
    assert ("search", after, 6) not in told
    assert ("search", 6, 6) in told
    assert not list(tmp_path.iterdir())


def test_children_have_the_total_of_their_parent_and_stay_in_bounds():
    import random

    layout = Layout(tuple(Layer(f"l{i}", (10 + 7 * i, 40), "ab"[i % 2]) for i in range(6)))
    units = sizes_of_levels(layout)
    for sparsity in (0.0, 0.05, 0.5, 0.97):
        parent = dict.fromkeys(layout, 0)
        total = sum(budget_of(layout, sparsity, parent, units).values())
        for seed in range(200):
            child = mutated(layout, sparsity, parent, units, random.Random(seed))
            if child is None:
                continue
            budget = budget_of(layout, sparsity, child, units)
            assert sum(budget.values()) == total
            assert all(0 <= budget[name] < layout[name].size for name in layout)
            assert max(map(abs, child.values())) <= MOST
            parent = child


def test_groups_trade_as_wholes():
    import random

    layout = Layout(tuple(Layer(f"l{i}", (10, 40), "ab"[i // 4]) for i in range(8)))
    units = sizes_of_levels(layout)
    parent = dict.fromkeys(layout, 0)
    children = [mutated(layout, 0.5, parent, units, random.Random(seed)) for seed in range(60)]
    sums = [abs(sum(child[f"l{i}"] for i in range(4))) for child in children if child]
    assert max(sums) >= 2


def silent(model, batch):
    return torch.ones(2, 3)


REFUSED = {
    "no data": ({"batches": None}, "needs calibration data"),
    "statistics": (
        {"batches": lambda: mf.calibrate(two_towers(), BATCHES, adapter=ADAPTER), "method": "wanda"},
        "statistics measured before were given; pass batches that can be gone through again",
    ),
    "a generator": ({"batches": lambda: iter(BATCHES), "method": "wanda"}, "batches that can be gone through once"),
    "steps": ({"method": "itersnip"}, "each layer must be pruned by itself, and pruner 'itersnip' does not"),
    "solver": ({"method": "chita"}, "pruner 'chita' shares the sparsity out itself"),
    "pattern": ({"pattern": "2:4", "sparsity": None}, "pattern '2:4' fixes the budget of every layer"),
    "until stable": ({"until_stable": 0.9, "method": "wanda"}, "would search anew for each"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched(case):
    given, said = REFUSED[case]
    given = {name: value() if callable(value) else value for name, value in given.items()}
    with pytest.raises(mf.MultiflowError, match=said):
        prune(**given)


def test_a_fitness_that_is_the_same_for_all_budgets_is_an_error():
    adapter = replace(ADAPTER, outputs=silent, forward=silent)
    with pytest.raises(mf.MultiflowError, match=r"the loss is 0 whatever the budgets of \d trials"):
        mf.prune(two_towers(), "magnitude-layer", 0.5, BATCHES, adapter=adapter, allocation="search")


def test_a_loss_that_is_not_finite_is_an_error():
    batches = [{**b, "pixels": b["pixels"] * torch.nan} for b in BATCHES]
    with pytest.raises(mf.MultiflowError, match="the loss of a budget is nan"):
        prune(batches=batches)


@pytest.mark.parametrize(("batches", "more", "said"), [
    ([], {}, "there are no calibration batches"),
    (BATCHES, {"seed": "a"}, "seed 'a' was given; expected a whole number, such as 0"),
    (BATCHES, {"seed": 1.5}, "seed 1.5 was given"),
    ([{key: value[:0] for key, value in BATCHES[0].items()}], {}, "nothing to search by; give data"),
])  # fmt: skip
def test_what_a_search_cannot_begin_with(batches, more, said):
    with pytest.raises(mf.MultiflowError, match=said):
        prune(batches=batches, **more)
