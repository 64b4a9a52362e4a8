from __future__ import annotations

import random

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Budget, Layer, Layout, NofM, PerRow
from multiflow.methods.budgets import (
    ALLOCATIONS,
    SCHEDULES,
    check_pattern,
    find_allocation,
    fit_budget,
    pattern_budget,
    sparsities_of,
)

LAYOUT = Layout((Layer("a", (50, 7), "x"), Layer("b", (30, 11), "y"), Layer("c", (20, 20), "x")))
SPARSITIES = [0.0, 0.63, 0.9]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = {"a": 1.0, "b": 3.0, "c": 0.3}
    return {name: torch.randn(LAYOUT[name].shape, generator=generator) * scales[name] for name in LAYOUT}


def dropped_by_sorting(values: dict[str, torch.Tensor], names: list[str], sparsity: float) -> dict[str, int]:
    flat = torch.cat([values[name].flatten() for name in names])
    owner = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([values[n].numel() for n in names]))
    first = owner[flat.argsort(stable=True)[: round(sparsity * len(flat))]]
    return {name: int((first == i).sum()) for i, name in enumerate(names)}


def test_global_ranks_all_scores_together():
    scores = tensors()
    budgets = find_allocation("global").budgets(LAYOUT, SPARSITIES, scores=scores)
    assert budgets == [dropped_by_sorting(scores, list(LAYOUT), s) for s in SPARSITIES]


def test_uniform_gives_every_layer_its_share():
    for s, budget in zip(SPARSITIES, find_allocation("uniform").budgets(LAYOUT, SPARSITIES), strict=True):
        assert budget == {layer.name: round(s * layer.size) for layer in LAYOUT.layers}


def test_multimodal_ranks_magnitudes_in_every_group_apart():
    weights = tensors()
    magnitudes = {name: weight.abs() for name, weight in weights.items()}
    budgets = find_allocation("multimodal").budgets(LAYOUT, SPARSITIES, weights=weights)
    for s, budget in zip(SPARSITIES, budgets, strict=True):
        assert list(budget) == list(LAYOUT)
        assert budget == dropped_by_sorting(magnitudes, ["a", "c"], s) | dropped_by_sorting(magnitudes, ["b"], s)
        assert budget["a"] + budget["c"] == round(s * (350 + 400))


def test_your_function_asks_for_what_it_wants_by_keyword():
    seen = {}

    def mine(layout, sparsity, *, scores):
        seen[sparsity] = scores
        return {layer.name: 1 for layer in layout.layers}

    scores = tensors()
    assert find_allocation(mine).budgets(LAYOUT, [0.5, 0.6], scores=scores) == [{"a": 1, "b": 1, "c": 1}] * 2
    assert seen == {0.5: scores, 0.6: scores}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"a": 1, "b": 1}, "no budget to layer 'c'"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "'d', which is not in the layout"),
        ({"a": 1, "b": 1, "c": 0.5}, "layer 'c' a budget of 0.5"),
        ({"a": 1, "b": 1, "c": 401}, "between 0 and 400"),
        ({"a": -1, "b": 1, "c": 1}, "layer 'a' a budget of -1"),
    ],
)
def test_a_wrong_budget_names_the_layer(budget, message):
    with pytest.raises(MultiflowError, match=message):
        find_allocation(lambda layout, sparsity: budget).budgets(LAYOUT, [0.5])


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(MultiflowError, match="known: alpha, .*uniform; did you mean 'global'"):
        find_allocation("globl")
    assert set(ALLOCATIONS) == {"global", "uniform", "owl", "dlp", "alpha", "atp", "ecoflap", "multimodal", "search"}


def test_per_row_means_the_same_in_every_row():
    layout = Layout((Layer("a", (3, 50), "x"),))
    assert pattern_budget(layout, 0.63, PerRow()) == {"a": round(0.63 * 50) * 3}
    assert pattern_budget(LAYOUT, 0.0, PerRow()) == {"a": 0, "b": 0, "c": 0}
    assert fit_budget(Budget({"a": 95}), layout) == {"a": round(95 / 150 * 50) * 3}


@pytest.mark.parametrize("seed", range(20))
def test_per_row_moves_the_total_by_at_most_half_a_weight_a_row_of_one_layer(seed):
    draw = random.Random(seed)
    rows = draw.choice([3, 32, 100])
    layout = Layout(tuple(Layer(f"l{i}", (rows, draw.choice([5, 32, 64])), "x") for i in range(draw.randint(1, 9))))
    budget = Budget({x.name: draw.randint(0, x.size) for x in layout.layers})
    fitted = fit_budget(budget, layout)
    assert abs(sum(fitted.values()) - sum(budget.values())) <= rows / 2
    for layer in layout.layers:
        assert fitted[layer.name] % rows == 0
        assert 0 <= fitted[layer.name] <= layer.size
        assert abs(fitted[layer.name] - budget[layer.name]) <= 1.5 * rows


def test_n_of_m_must_divide_the_inputs():
    check_pattern(NofM(2, 4), Layout((Layer("c", (20, 20), "x"),)))
    assert pattern_budget(Layout((Layer("c", (20, 20), "x"),)), 0.25, NofM(3, 4)) == {"c": 100}
    with pytest.raises(MultiflowError, match="layer 'a' has 7 inputs"):
        check_pattern(NofM(2, 4), LAYOUT)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (None, "gives a NoneType; expected a dict"),
        (dict.fromkeys(LAYOUT, float("nan")), "layer 'a' a budget of nan"),
        (dict.fromkeys(LAYOUT, "all"), "layer 'a' a budget of all"),
        ({name: [1] for name in LAYOUT}, r"layer 'a' a budget of \[1\]; expected a whole number"),
        (dict.fromkeys(LAYOUT, float("inf")), "layer 'a' a budget of inf"),
    ],
)
def test_what_is_no_budget_is_one_sentence(budget, message):
    with pytest.raises(MultiflowError, match=message):
        find_allocation(lambda layout, sparsity: budget).budgets(LAYOUT, [0.5])


def test_an_empty_layer_drops_nothing():
    layout = Layout((Layer("a", (0, 4), "x"), Layer("b", (4, 0), "x"), Layer("c", (4, 4), "x")))
    assert fit_budget(Budget({"a": 0, "b": 0, "c": 8}), layout) == {"a": 0, "b": 0, "c": 8}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_cannot_be_ranked_name_their_layer(bad):
    weights = tensors()
    weights["b"][3, 2] = bad
    with pytest.raises(MultiflowError, match="the weight of layer 'b' holds NaN or Inf"):
        find_allocation("multimodal").budgets(LAYOUT, [0.4], weights=weights)


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
    with pytest.raises(MultiflowError, match="'expp'; known: exp, linear; did you mean 'exp'"):
        sparsities_of("expp", 0.5, 2)
    with pytest.raises(MultiflowError, match="steps=0 was given; expected at least 1"):
        sparsities_of("exp", 0.5, 0)
