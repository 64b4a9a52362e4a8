"""Budgets of other papers: exact totals, and the formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.methods.blocks import (
    alpha,
    atp,
    block_of,
    blocks,
    dlp,
    ecoflap,
    hill,
    medians,
    outlier_shares,
    owl,
    spread,
    to_budget,
)
from tests.small import ADAPTER, towers_batches, two_towers

SPARSITIES = [0.0, 0.37, 0.5, 0.63, 0.75, 0.9, 0.99]


def model(shapes=((8, 12), (12, 8), (7, 5)), seed=0, groups=("vision", "text"), depth=3):
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        Layer(f"{group}.layers.{number}.part{i}", shape, group)
        for group in groups
        for number in range(depth)
        for i, shape in enumerate(shapes)
    )
    layout = Layout((*layers, Layer("head", (3, 5), "text")))
    weights = {x.name: torch.randn(x.shape, generator=generator) ** 3 for x in layout.layers}
    norms = {x.name: torch.rand(x.shape[1], generator=generator) + 0.1 for x in layout.layers}
    return layout, weights, norms


def all_of(layout, weights, norms, sparsities):
    gradient = {name: weight * (i % 4 + 1) for i, (name, weight) in enumerate(weights.items())}
    return {
        "owl": owl(layout, sparsities, weights, input_norm=norms),
        "dlp": dlp(layout, sparsities, weights, input_norm=norms),
        "alpha": alpha(layout, sparsities, weights),
        "atp": atp(layout, sparsities),
        "ecoflap": ecoflap(layout, sparsities, gradient=gradient),
    }


@pytest.mark.parametrize("seed", range(5))
def test_totals_are_exact_and_no_layer_drops_more_than_it_has(seed):
    layout, weights, norms = model(seed=seed)
    for budgets in all_of(layout, weights, norms, SPARSITIES).values():
        for s, budget in zip(SPARSITIES, budgets, strict=True):
            assert list(budget) == list(layout)
            assert sum(budget.values()) == round(s * layout.size)
            assert all(isinstance(n, int) and 0 <= n <= layout[name].size for name, n in budget.items())


def test_blocks():
    assert block_of("a.layers.10.mlp.fc1") == "a.layers.10"
    assert block_of("a.layers.10") == "a.layers.10"
    assert block_of("head.2x") == "head.2x"
    layout, _, _ = model()
    assert [len(of) for of in blocks(layout.layers).values()] == [3] * 6 + [1]


def shares(budget, layout):
    return {
        name: sum(budget[x.name] for x in of) / sum(x.size for x in of) for name, of in blocks(layout.layers).items()
    }


@pytest.mark.parametrize("method", ["owl", "dlp"])
def test_owl_and_dlp_by_hand(method):
    layout, weights, norms = model(shapes=((40, 50), (50, 40)))
    numbers = {}
    for name, of in blocks(layout.layers).items():
        scores = np.concatenate([(weights[x.name].abs() * norms[x.name]).numpy().ravel() for x in of])
        numbers[name] = (
            (scores > 5 * scores.mean()).mean() if method == "owl" else np.sort(scores)[(len(scores) - 1) // 2]
        )
    if method == "dlp":
        numbers = {name: 1 - m / sum(numbers.values()) for name, m in numbers.items()}
    low, high = min(numbers.values()), max(numbers.values())
    width = {"owl": 0.16, "dlp": 0.3}[method]
    kept = {name: (d - low) / (high - low) * width for name, d in numbers.items()}
    size = {name: sum(x.size for x in of) for name, of in blocks(layout.layers).items()}
    mean = sum(kept[n] * size[n] for n in size) / layout.size
    budget = {"owl": owl, "dlp": dlp}[method](layout, [0.6], weights, input_norm=norms)[0]
    for name, share in shares(budget, layout).items():
        assert share == pytest.approx(1 - (kept[name] - mean + 0.4), abs=3 / size[name])


def test_more_outliers_keep_more():
    layout, weights, norms = model()
    some = "vision.layers.1.part0"
    weights[some] = weights[some] * 0.1
    weights[some][0] *= 1000
    numbers = outlier_shares(layout, weights, norms)
    assert max(numbers, key=numbers.get) == max(
        shares(owl(layout, [0.7], weights, input_norm=norms)[0], layout),
        key=lambda n: -shares(owl(layout, [0.7], weights, input_norm=norms)[0], layout)[n],
    )


def test_alpha_by_hand():
    layout, weights, _ = model(shapes=((30, 40), (40, 30)))
    for name in ("vision.layers.0.part0", "head"):
        w = weights[name].double().numpy()
        values = np.sort(np.linalg.svd(w, compute_uv=False) ** 2)
        n = len(values)
        upper = values[(n - 1) // 2 :]
        assert hill(weights[name]) == pytest.approx(1 + len(upper) / np.log(upper / upper[0]).sum())
    found = {name: hill(w) for name, w in weights.items()}
    low, high = min(found.values()), max(found.values())
    wish = {name: 0.7 + 0.6 * (v - low) / (high - low) for name, v in found.items()}
    factor = 0.5 * layout.size / sum(wish[x.name] * x.size for x in layout.layers)
    for name, n in alpha(layout, [0.5], weights)[0].items():
        assert n == pytest.approx(factor * wish[name] * layout[name].size, abs=1)


def test_atp_is_an_arithmetic_progression_in_every_group():
    layout, _, _ = model(shapes=((100, 100),), groups=("vision", "fusion"), depth=5)
    layout = Layout(layout.layers[:-1])
    budget = atp(layout, [0.7], step=0.02)[0]
    assert [budget[x.name] for x in layout.layers] == [6600, 6800, 7000, 7200, 7400] * 2


def test_ecoflap_is_proportional_below_its_cap():
    layout, _, _ = model(shapes=((100, 100),), groups=("vision",), depth=4)
    layout = Layout(layout.layers[:-1])
    worth = dict(zip(layout, [2.0, 1.0, 1.0, 0.1], strict=True))
    gradient = {name: torch.full((100, 100), value) for name, value in worth.items()}
    budget = ecoflap(layout, [0.7], gradient=gradient)[0]
    dropped = list(budget.values())
    assert max(dropped) <= 8000
    assert dropped[3] == 8000
    assert dropped[0] == pytest.approx(10000 - 5000, abs=1)  # of 12,000 kept ones 2,000 each are the least
    with pytest.raises(mf.MultiflowError, match="'ecoflap' finds no gradient"):
        ecoflap(layout, [0.7], gradient={name: value * 0 for name, value in gradient.items()})


def test_ecoflap_is_what_shaking_the_weights_gives_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    layout, _, _ = model(shapes=((6, 7),), groups=("vision",), depth=2)
    layout = Layout(layout.layers[:-1])
    slope = {name: torch.randn(6, 7, generator=generator) * (3 if "0" in name.split(".")[2] else 1) for name in layout}
    shaken = {
        name: float((torch.randn(20000, 42, generator=generator) @ g.flatten()).abs().mean())
        for name, g in slope.items()
    }
    one, other = (layout.layers[i].name for i in (0, 1))
    kept = {name: 42 - n for name, n in ecoflap(layout, [0.7], gradient=slope, cap=0.3)[0].items()}
    assert kept[one] / kept[other] == pytest.approx(shaken[one] / shaken[other], rel=0.2)
    assert kept[one] + kept[other] == 84 - round(0.7 * 84)


@pytest.mark.parametrize("name", ["owl", "dlp", "alpha", "atp", "ecoflap"])
@pytest.mark.parametrize("method", ["magnitude-layer", "wanda", "lobs"])
def test_by_name_with_every_kind_of_pruner(name, method):
    options = {"adapter": ADAPTER, "allocation": name, "pattern": "unstructured"}
    result = mf.prune(two_towers(), method, [0.5, 0.75], towers_batches(), **options)
    for s, masks in result.masks.items():
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(s * masks.layout.size)
    with pytest.raises(mf.MultiflowError, match=f"pattern '2:4' fixes the budget of every layer.*{name}"):
        mf.prune(two_towers(), method, 0.5, towers_batches(), **(options | {"pattern": "2:4"}))


def test_equal_blocks_get_equal_shares():
    layout, weights, norms = model()
    same = {x.name: torch.ones(x.shape) for x in layout.layers}
    ones = {x.name: torch.ones(x.shape[1]) for x in layout.layers}
    for budgets in (owl(layout, [0.6], same, input_norm=ones), dlp(layout, [0.6], same, input_norm=ones)):
        for name, n in budgets[0].items():
            assert abs(n - 0.6 * layout[name].size) <= 1
    assert spread({"a": 1.0, "b": 1.0}, 0.5) == {"a": 0.0, "b": 0.0}
    assert len(medians(layout, weights, norms)) == 7
    assert sum(to_budget(layout, 0.98, {n: i / 10 for i, n in enumerate(layout)}).values()) == round(0.98 * layout.size)
