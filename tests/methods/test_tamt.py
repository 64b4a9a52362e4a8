from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.methods.tamt import start_scores, tamt
from multiflow.pruning import learner
from tests.small import ADAPTER, chain, every, towers_batches, two_towers


@pytest.fixture
def told(monkeypatch):
    """The masks of every step of the runs of a test."""
    masks, choose = [], learner.choose_masks

    def choosing(plan, scores, sparsity):
        masks.append(choose(plan, scores, sparsity))
        return masks[-1]

    monkeypatch.setattr(learner, "choose_masks", choosing)
    return masks


def prune(sparsity=0.5, model=None, batches=None, **options):
    options = {"adapter": ADAPTER, "steps": 6, "lr": 0.05} | options
    return mf.prune(model or two_towers(), "tamt", sparsity, batches or towers_batches(), **options)


@pytest.mark.parametrize("threshold", ["layer", "global"])
@pytest.mark.parametrize("sparsity", [0.37, 0.9])
def test_sparsity_is_exact_at_every_step(told, threshold, sparsity):
    result = prune(sparsity, threshold=threshold)
    assert len(told) == 7  # before each of six steps, and after the last
    for masks in told:
        dropped = {name: int((~mask).sum()) for name, mask in masks.items()}
        if threshold == "layer":
            assert dropped == {name: round(sparsity * mask.numel()) for name, mask in masks.items()}
        else:
            assert sum(dropped.values()) == round(sparsity * sum(mask.numel() for mask in masks.values()))
    assert all(torch.equal(mask, told[-1][name]) for name, mask in result.masks[sparsity].items())


def test_the_threshold_over_all_layers_moves_the_sparsity_between_layers():
    shares = prune(threshold="global", steps=20).masks[0.5].sparsities()
    assert max(shares.values()) - min(shares.values()) > 0.02
    with pytest.raises(mf.MultiflowError, match="'globl'; known: layer, global; .*mean 'global'"):
        prune(threshold="globl")


def test_weights_that_were_dropped_come_back(told):
    prune(steps=20)
    first, last = told[0], told[-1]
    assert all(bool((last[name] & ~mask).any()) for name, mask in first.items())


def test_the_first_mask_is_that_of_magnitude_in_the_layer(told):
    prune(0.63)
    magnitude = mf.prune(two_towers(), "magnitude-layer", 0.63, adapter=ADAPTER).masks[0.63]
    assert all(torch.equal(mask, told[0][name]) for name, mask in magnitude.items())


def regression():
    """A teacher's outputs to be met by a chain of layers, on one fixed batch."""
    generator = torch.Generator().manual_seed(0)
    x, teacher = torch.randn(64, 8, generator=generator), torch.randn(8, 4, generator=generator)
    model = chain(8, 64, 4)
    return model, [(x, x @ teacher)], every(model, loss=lambda m, b: (m(b[0]) - b[1]).square().mean())


@pytest.mark.parametrize("threshold", ["layer", "global"])
def test_the_loss_falls_below_that_of_magnitude(threshold):
    def loss(model, batch):
        losses.append((value := adapter.loss(model, batch)).item())
        return value

    (model, batches, adapter), losses = regression(), []
    watched = replace(adapter, loss=loss)
    mf.prune(model, "tamt", 0.5, batches, adapter=watched, steps=80, lr=0.03, threshold=threshold)
    assert max(losses[-10:]) < 0.7 * losses[0]


def test_the_gradient_of_a_score_is_that_of_the_masked_weight_times_the_weight(monkeypatch):
    """For dropped weights as well: a straight-through estimator written out, and the first step of AdamW."""
    model, batches, adapter = regression()
    weights = {name: layer.weight.detach().clone() for name, layer in [("0", model[0]), ("1", model[1])]}
    before = start_scores(weights, 0.5)
    kept = {name: score > 0 for name, score in before.items()}
    masked = {name: (weights[name] * kept[name]).requires_grad_() for name in weights}
    x, y = batches[0]
    (x @ masked["0"].T @ masked["1"].T - y).square().mean().backward()
    found, choose = [], learner.choose_masks
    monkeypatch.setattr(
        learner, "choose_masks", lambda job, scores, s: found.append(copy.deepcopy(scores)) or choose(job, scores, s)
    )
    mf.prune(model, "tamt", 0.5, batches, adapter=adapter, steps=1, lr=0.01)
    for name, weight in weights.items():
        gradient = masked[name].grad * weight
        assert gradient[~kept[name]].any()
        expected = before[name] - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-6)


def test_scores_start_at_twice_the_border_of_magnitude_where_the_layer_keeps_the_weight():
    weights = {"a": torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "b": torch.tensor([[10.0, 20.0], [-30.0, 40.0]])}
    scores = start_scores(weights, 0.5)  # of all eight, the fourth smallest is 4
    assert scores["a"].tolist() == scores["b"].tolist() == [[0.0, 0.0], [8.0, 8.0]]


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.999])
def test_sparsities_at_the_ends(sparsity):
    model = chain(4, 4)
    adapter = every(model, loss=lambda m, x: m(x).square().mean())
    masks = mf.prune(model, "tamt", sparsity, [torch.ones(2, 4)], adapter=adapter, steps=2).masks[sparsity]
    assert masks.dropped("0") == round(16 * sparsity)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop, self.seen = nn.Linear(8, 8, bias=False), nn.Dropout(0.5), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, self.drop.training, self.drop(torch.ones(64)).mean().item()))
        return self.drop(self.layer(x)).square().mean()


def test_dropout_is_on_and_the_callers_random_state_untouched():
    torch.manual_seed(0)
    model = Dropping().eval()
    adapter, state = every(model, loss=lambda m, x: m(x)), torch.random.get_rng_state()
    results = [
        mf.prune(model, "tamt", 0.5, [torch.ones(2, 8)], adapter=adapter, steps=4, lr=0.1, seed=seed)
        for seed in (0, 0, 100)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert not model.drop.training
    assert all(training and dropping for training, dropping, _ in model.seen)
    one, two, other = ([drop for *_, drop in model.seen[i : i + 4]] for i in (0, 4, 8))
    assert one == two != other
    assert len(set(one)) > 1  # another draw at every step
    assert results[0].masks == results[1].masks


def test_weights_are_frozen_and_masked_in_the_forward():
    model, seen = two_towers(), []

    def loss(m, batch):
        seen.append({name: m.get_submodule(name).weight.detach().clone() for name in ADAPTER.layout(m)})
        return ADAPTER.loss(m, batch)

    before = copy.deepcopy(model.state_dict())
    prune(model=model, adapter=mf.Adapter(groups=ADAPTER.groups, loss=loss))
    for of in seen:
        for name, weight in of.items():
            original, kept = before[f"{name}.weight"], weight != 0
            assert torch.equal(weight[kept], original[kept])
            assert int((~kept).sum()) == round(0.5 * kept.numel())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("options", "said"), [
    ({"steps": 0}, "steps 0 and lr 0.05 were given; expected at least 1 step and an lr above 0"),
    ({"lr": 0.0}, "steps 6 and lr 0.0 were given"),
    ({"steps": 2.5}, "steps=2.5 of pruner 'tamt' is a float"),
])  # fmt: skip
def test_bad_settings(options, said):
    with pytest.raises(mf.MultiflowError, match=said):
        prune(**options)


def test_a_gradient_that_is_not_finite_is_told_and_leaves_the_model_as_it_was():
    model = chain(4, 4)
    adapter = every(model, loss=lambda m, x: (m(x) * 0).square().sum().sqrt())  # 0, with a gradient of 0 / 0
    before = model[0].weight.detach().clone()
    with pytest.raises(mf.MultiflowError, match="NaN"):
        mf.prune(model, "tamt", 0.5, [torch.ones(2, 4)], adapter=adapter, steps=3)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradient_and_weight_are_multiplied_in_float32(dtype):
    """In float16 many of these products are zero, in bfloat16 they lose most of their digits."""
    grads = {}

    class Watch:
        def resume(self, scores, optimizer):
            return 0

        def save(self, step, scores, optimizer):
            grads.update({name: score.grad.clone() for name, score in scores.items()})

    generator = torch.Generator().manual_seed(0)
    weight, slope = (torch.randn(4, 8, generator=generator).to(dtype) * 1e-4 for _ in range(2))
    weights, kept = {"a": nn.Parameter(weight.clone())}, {"a": torch.ones(4, 8).bool()}
    given = {"sparsity": 0.5, "seed": 0, "checkpoint": Watch(), "progress": None, "steps": 1}
    tamt(nn.Module(), weights, lambda: (weights["a"] * slope).sum(), lambda scores: kept, **given)
    assert torch.equal(grads["a"], slope.float() * weight.float())
