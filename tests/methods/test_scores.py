"""Every score against its formula, written out weight by weight."""

from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.methods import PRUNERS
from tests.small import ADAPTER, two_towers

SHAPES = [(1, 1), (3, 5), (7, 4)]


def weight_and_norm(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.rand(shape[1], generator=generator) + 0.1


def by_hand(formula, weight, *extra):
    return torch.tensor([[formula(weight, i, j, *extra) for j in range(weight.shape[1])] for i in range(len(weight))])


def flow(w, i, j, a):
    flow_out = sum(abs(w[i, k]) * a[k] for k in range(w.shape[1])) / w.shape[1]
    flow_in = a[j] * sum(abs(w[k, j]) for k in range(len(w))) / len(w)
    return float(flow_out * abs(w[i, j]) * flow_in)


def relative(w, i, j, a):
    return float((abs(w[i, j]) / w[:, j].abs().sum() + abs(w[i, j]) / w[i].abs().sum()) * a[j] ** 0.5)


SCORERS = [name for name, p in PRUNERS.items() if p.kind == "scorer" and p.function.__module__.startswith("multiflow.")]
FORMULAS = {
    "multiflow": flow,
    "wanda": lambda w, i, j, a: float(abs(w[i, j]) * a[j]),
    "ria": relative,
    "magnitude": lambda w, i, j: float(abs(w[i, j])),
    "magnitude-layer": lambda w, i, j: float(abs(w[i, j])),
    "magnitude-modality": lambda w, i, j: float(abs(w[i, j])),
    "l2": lambda w, i, j: float(abs(w[i, j]) / w.square().sum().sqrt()),
    "lamp": lambda w, i, j: float(w[i, j] ** 2 / w[w.abs() >= abs(w[i, j])].square().sum()),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula(name, shape):
    weight, norm = weight_and_norm(shape)
    before = weight.clone()
    pruner = PRUNERS[name]
    given = {"input_norm": norm} if pruner.needs else {}
    expected = by_hand(FORMULAS[name], weight, *given.values())
    torch.testing.assert_close(pruner.function(weight, **given), expected, rtol=1e-5, atol=0)
    assert torch.equal(weight, before)


def test_every_pruner_but_random_has_its_formula_here():
    assert set(SCORERS) - set(FORMULAS) == {"random", "snip", "itersnip"}  # snip: test_the_score_of_snip
    assert PRUNERS["itersnip"].function is PRUNERS["snip"].function


def test_lamp_of_a_weight_that_is_no_number_is_told():
    model = two_towers()
    model.text[0].weight.data[3, 4] = torch.nan
    with pytest.raises(mf.MultiflowError, match=r"'lamp' gave NaN or Inf scores for layer 'text.0'"):
        mf.prune(model, "lamp", 0.5, adapter=ADAPTER)


def test_lamp_gives_equal_weights_equal_scores():
    scores = PRUNERS["lamp"].function(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([[1 / 6, 1 / 6], [1.0, 0.0]]))


@pytest.mark.parametrize("name", SCORERS)
def test_rows_and_columns_of_zeros_score_zero_not_nan(name):
    weight, norm = weight_and_norm((3, 5))
    weight[1], weight[:, 2] = 0, 0
    pruner = PRUNERS[name]
    given = {"input_norm": norm, "gradient": weight.cos(), "generator": torch.Generator().manual_seed(0)}
    scores = pruner.function(weight, **{need: given[need] for need in pruner.needs})
    assert scores.isfinite().all()
    if name != "random":
        assert not scores[weight == 0].any()
        assert not pruner.function(weight * 0, **{n: given[n] for n in pruner.needs}).any()


def test_random_is_a_function_of_the_generator():
    first, second, other = (
        PRUNERS["random"].function(torch.zeros(4, 4), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", SCORERS)
def test_double_precision_stays_double(name):
    weight, norm = (x.double() for x in weight_and_norm((3, 5)))
    pruner = PRUNERS[name]
    given = {"input_norm": norm, "gradient": weight.cos(), "generator": torch.Generator().manual_seed(0)}
    scores = pruner.function(weight, **{need: given[need] for need in pruner.needs})
    assert name == "random" or scores.dtype == torch.float64


def test_the_norm_of_l2_does_not_overflow():
    weight, _ = weight_and_norm((3, 5))
    scores = PRUNERS["l2"].function(weight * 1e30)
    torch.testing.assert_close(scores, PRUNERS["l2"].function(weight))


def test_the_score_of_snip():
    weight, gradient = weight_and_norm((3, 5))[0], weight_and_norm((3, 5), seed=1)[0]
    expected = by_hand(lambda w, i, j, g: float(abs(w[i, j] * g[i, j])), weight, gradient)
    torch.testing.assert_close(PRUNERS["snip"].function(weight, gradient=gradient), expected)
