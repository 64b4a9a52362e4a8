from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import multiflow as mf
from tests import golden_data
from tests.small import ADAPTER, chain, every, towers_batches, two_towers


def prune(method="itersnip", sparsity=0.75, batches=None, **options):
    options = {"adapter": ADAPTER} | options
    return mf.prune(two_towers(), method, sparsity, towers_batches() if batches is None else batches, **options)


@pytest.mark.parametrize("family", ["xvlm", "blip", "dino"])
def test_one_step_over_all_batches_is_snip_bit_for_bit(family):
    batches = golden_data.batches(family)[:4]
    snip = mf.prune(golden_data.model(family), "snip", [0.63, 0.9], batches)
    model = golden_data.model(family)
    for size in (4, 50):
        iterated = mf.prune(model, "itersnip", [0.63, 0.9], batches, steps=1, batches_per_step=size)
        assert iterated.masks == snip.masks


def steps_of(**options):
    """The masks after each step of a run, flat: what the loss finds in the model, and the result's."""

    def seen(model):
        found.append({name: model.get_submodule(name).weight.flatten() != 0 for name in ADAPTER.layout(model)})

    found = []
    adapter = replace(ADAPTER, loss=lambda model, batch: seen(model) or ADAPTER.loss(model, batch))
    result = prune(adapter=adapter, **options)
    last = {name: mask.flatten() for masks in result.masks.values() for name, mask in masks.items()}
    return result, [*found[:: options["batches_per_step"]][1:], last]


@pytest.mark.parametrize("schedule", ["exp", "linear"])
def test_weights_that_are_gone_stay_gone_and_every_step_drops_its_exact_number(schedule):
    result, seen = steps_of(steps=5, batches_per_step=2, schedule=schedule)
    size = result.masks[0.75].layout.size
    shares = {"exp": [1 - 0.25 ** (t / 5) for t in range(1, 6)], "linear": [0.15, 0.3, 0.45, 0.6, 0.75]}[schedule]
    assert [sum(int((~mask).sum()) for mask in of.values()) for of in seen] == [round(s * size) for s in shares]
    for before, after in pairwise(seen):
        assert not any(bool((after[name] & ~mask).any()) for name, mask in before.items())
    assert all(torch.equal(seen[-1][name], mask.flatten()) for name, mask in result.masks[0.75].items())


def test_each_step_scores_the_network_as_it_is_pruned_by_then():
    """Written out by hand: two steps, a batch each."""
    model, batches = two_towers(), towers_batches()
    modules = {name: model.get_submodule(name) for name in ADAPTER.layout(model)}
    kept = {name: torch.ones_like(module.weight, dtype=torch.bool) for name, module in modules.items()}
    size = sum(mask.numel() for mask in kept.values())
    for target, batch in zip([0.5, 0.75], batches, strict=False):
        weights = [module.weight for module in modules.values()]
        gradients = torch.autograd.grad(ADAPTER.loss(model, batch), weights)
        scores = [
            (w * g).abs().masked_fill(~m, -1.0) for w, g, m in zip(weights, gradients, kept.values(), strict=True)
        ]
        border = torch.cat([s.flatten() for s in scores]).sort().values[round(target * size) - 1]
        kept = {name: score > border for name, score in zip(kept, scores, strict=True)}
        for name, module in modules.items():
            module.weight.data = module.weight.data * kept[name]
    masks = prune(steps=2, batches_per_step=1).masks[0.75]
    assert all(torch.equal(masks[name], mask) for name, mask in kept.items())


@pytest.mark.parametrize("family", [None, "blip"])
def test_the_masks_of_a_sparsity_do_not_depend_on_the_others(family):
    """Each begins with the first batches, the original weights and the buffers as they were."""
    build = two_towers if family is None else lambda: golden_data.model(family)
    batches = towers_batches() if family is None else golden_data.batches(family)[:3]
    options = {"adapter": None if family else ADAPTER, "steps": 2, "batches_per_step": 2}
    both = mf.prune(build(), "itersnip", [0.9, 0.5], batches, **options)
    for sparsity in (0.9, 0.5):
        assert both.masks[sparsity] == mf.prune(build(), "itersnip", sparsity, batches, **options).masks[sparsity]


def test_steps_take_batch_after_batch_and_begin_again():
    batches = towers_batches(1, 2, 3)
    twice = prune(batches=batches, steps=3, batches_per_step=2)
    assert twice.masks == prune(batches=batches * 2, steps=3, batches_per_step=2).masks
    assert twice.masks != prune(batches=batches[::-1], steps=3, batches_per_step=2).masks


def test_fewer_batches_than_a_step_asks_for_are_taken_once_each():
    few = towers_batches(2, 3)
    assert (
        prune(batches=few, steps=2, batches_per_step=9).masks == prune(batches=few, steps=2, batches_per_step=2).masks
    )


def test_the_pattern_holds_in_every_step():
    result, seen = steps_of(sparsity=0.5, steps=3, batches_per_step=1, pattern="per-row")
    for layer in result.masks[0.5].layout.layers:
        for of, share in zip(seen, [1 - 0.5 ** (1 / 3), 1 - 0.5 ** (2 / 3), 0.5], strict=True):
            dropped = (~of[layer.name].view(layer.shape)).sum(1).tolist()
            assert dropped == [round(share * layer.shape[1])] * layer.shape[0]


@pytest.mark.parametrize("allocation", ["uniform", "multimodal"])
def test_other_allocations_grow_along_the_schedule(allocation):
    masks = prune(sparsity=0.6, steps=3, batches_per_step=1, allocation=allocation).masks[0.6]
    assert masks.sparsity == pytest.approx(0.6, abs=0.001)
    assert all(share == pytest.approx(0.6, abs=0.002) for share in masks.group_sparsities().values())


def test_a_layer_without_gradient_is_pruned_first_and_by_position():
    model = chain(4, 4, 4)
    adapter = every(model, loss=lambda m, x: m[0](x).square().mean())  # layer 1 is of no use
    with pytest.warns(UserWarning, match="the loss never reaches 1 of 2 layers, first '1'"):
        masks = mf.prune(model, "itersnip", 0.25, [torch.ones(2, 4)], adapter=adapter, steps=2).masks[0.25]
    assert masks["0"].all()
    assert masks["1"].flatten().tolist() == [False] * 8 + [True] * 8
