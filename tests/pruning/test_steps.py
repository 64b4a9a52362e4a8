from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import multiflow as mf
from multiflow.methods import PRUNERS
from multiflow.pruning.steps import count_samples
from tests.small import ADAPTER, QUICK, chain, every, towers_batches, two_towers


def prune(method="itersnip", sparsity=0.5, model=None, batches=None, **options):
    options = {"adapter": ADAPTER} | QUICK.get(method, {}) | options
    return mf.prune(model or two_towers(), method, sparsity, batches or towers_batches(), **options)


@pytest.mark.parametrize(("batch", "samples"), [
    ({"pixel_values": torch.ones(2, 3), "input_ids": torch.ones(4, 7)}, 4),
    ({"pixel_values": torch.ones(2, 3), "region": {"pixel_values": torch.ones(1, 3), "input_ids": torch.ones(5)}}, 7),
    ({"region": {"input_ids": torch.ones(5, 7)}}, 5),
    ({"scale": torch.ones(()), "x": torch.ones(3, 2)}, 3),
    ((torch.ones(6, 2), torch.ones(6)), 6),
    ([torch.ones(6, 2)], 6),
    (torch.ones(8, 2), 8),
])  # fmt: skip
def test_the_samples_of_a_batch(batch, samples):
    assert count_samples(batch) == samples


@pytest.mark.parametrize("batch", [{}, {"x": 3}, "text", torch.ones(())])
def test_a_batch_without_samples_is_told(batch):
    with pytest.raises(mf.MultiflowError, match=r"a batch \(\w+\) holds no tensor"):
        count_samples(batch)


def test_an_allocation_that_gives_weights_back_in_a_later_step_is_told():
    def fickle(layout, sparsity):
        first, *others = layout
        return {name: round(sparsity * layout[name].size) for name in others} | {first: 10 if sparsity < 0.5 else 5}

    said = (
        "at sparsity 0.5 the allocation drops fewer weights of layer 'text.0' than a step before; in steps a layer can"
    )
    with pytest.raises(mf.MultiflowError, match=said):
        prune(allocation=fickle)


def test_your_own_allocation_in_steps_ends_at_its_budget():
    masks = prune(allocation=lambda layout, s: {n: round(s * layout[n].size) // 2 for n in layout}).masks[0.5]
    assert all(masks.dropped(layer.name) == round(0.5 * layer.size) // 2 for layer in masks.layout.layers)


def test_the_result_of_a_method_in_steps():
    result = prune(sparsity=[0.9, 0.5], seed=4)
    assert list(result.masks) == [0.9, 0.5]
    assert result.weights is None
    assert result.scores is None
    assert result.stats is None
    assert result.settings["hyper"] == {**PRUNERS["itersnip"].hyper, **QUICK["itersnip"]}
    assert (result.settings["batches"], result.settings["seed"]) == (4, 4)
    assert result.masks[0.9].settings["sparsity"] == 0.9


@pytest.mark.parametrize("method", ["chita", "chita++"])
def test_changed_weights_go_with_their_masks(method):
    model = two_towers()
    result = prune(method, [0.5, 0.9], model)
    assert list(result.weights) == [0.5, 0.9]
    for sparsity, weights in result.weights.items():
        copy = two_towers()
        masks = result.apply_(copy, sparsity)
        for name, weight in weights.items():
            assert not weight[~masks[name]].any()
            assert torch.equal(copy.get_submodule(name).weight, weight)
            before = model.get_submodule(name).weight[masks[name]]
            assert not before.numel() or not torch.equal(weight[masks[name]], before)
    assert copy.text_out.weight is copy.vision_out.weight


def test_progress_counts_the_batches_of_all_steps_and_sparsities():
    told = []
    prune(sparsity=(0.5, 0.9), steps=3, batches_per_step=2, progress=lambda *step: told.append(step))
    assert told == [("calibrate", done, 12) for done in range(1, 13)]


def test_an_error_in_a_later_step_leaves_the_model_as_it_was():
    model, calls = two_towers().train(), []

    def loss(m, batch):
        calls.append(1)
        if len(calls) == 4:
            assert any(bool((m.get_submodule(name).weight == 0).any()) for name in ADAPTER.layout(m))
            raise RuntimeError("stop")
        return ADAPTER.loss(m, batch)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = {name: p.data_ptr() for name, p in model.named_parameters()}
    for method in ("itersnip", "chita++", "tamt"):
        calls.clear()
        with pytest.raises(RuntimeError, match="stop"):
            prune(method, model=model, adapter=mf.Adapter(groups=ADAPTER.groups, loss=loss), steps=4)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == memory
        assert model.training


def looked_at(method, sparsities, seen):
    """Prune a model, and call ``seen(model)`` with every batch, as a loss finds the model."""
    adapter = replace(ADAPTER, loss=lambda model, batch: seen(model) or ADAPTER.loss(model, batch))
    return prune(method, sparsities, adapter=adapter)


@pytest.mark.parametrize("method", ["itersnip", "chita++"])
def test_every_sparsity_starts_from_the_model_as_it_was(method):
    before, found = two_towers().state_dict(), []
    looked_at(method, [0.5, 0.9], lambda model: found.append(
        all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ))  # fmt: skip
    assert found == [True, True, False, False] * 2  # two steps of two batches each


@pytest.mark.parametrize("method", ["itersnip", "chita++"])
def test_pruned_weights_are_plus_zero_and_the_users_ones_are_never_written_to(method):
    zeros, places = [], []

    def seen(model):
        layers = [model.get_submodule(name).weight for name in ADAPTER.layout(model)]
        places.append({weight.data_ptr() for weight in layers})
        gone = [weight[weight == 0] for weight in layers]
        assert not any(of.signbit().any() for of in gone)
        zeros.append(sum(map(len, gone)))

    looked_at(method, 0.5, seen)
    assert not zeros[0]
    assert zeros[-1]
    assert not places[0] & places[-1]


def test_a_scorer_in_steps_that_needs_two_statistics_measures_them_on_the_same_batches():
    @mf.scorer("both", stepwise=True)
    def both(weight, *, gradient, input_norm):
        """Two statistics."""
        return (weight * gradient).abs() * input_norm

    model = chain(4, 4)
    adapter = every(model, loss=lambda m, x: m(x).square().mean())
    batches = list(torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0)))
    masks = mf.prune(model, "both", 0.5, batches, adapter=adapter, steps=1, batches_per_step=2).masks[0.5]
    stats = mf.calibrate(model, batches[:2], adapter=adapter, statistics=["gradient", "input_norm"])
    score = (model[0].weight * stats["gradient"]["0"]).abs() * stats["input_norm"]["0"]
    assert torch.equal(masks["0"], score > score.flatten().sort().values[7])


def test_a_solver_that_changes_its_weights_in_place_is_told():
    @mf.solver("impure solver")
    def impure(weights, count, select, *, gradient_rows):
        masks = select({name: weight.abs() for name, weight in weights.items()}, count)
        return masks, {name: weight.mul_(masks[name]) for name, weight in weights.items()}

    with pytest.raises(mf.MultiflowError, match="'impure solver' changed .*'text.0' in place"):
        mf.prune(two_towers(), "impure solver", 0.5, towers_batches(), adapter=ADAPTER)
