from __future__ import annotations

import copy

import pytest
import torch

import multiflow as mf
from multiflow.pruners import PRUNERS
from tests.small import ADAPTER, chain, every, towers_batches, two_towers


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was(monkeypatch):
    monkeypatch.setattr(PRUNERS, "_records", dict(PRUNERS._records))


def prune(method, sparsity, **options):
    return mf.prune(two_towers(), method, sparsity, towers_batches(), **{"adapter": ADAPTER, **options})


def test_the_moment_is_the_mean_product_of_real_tokens():
    model, batches = two_towers(), towers_batches()
    stats = mf.calibrate(model, batches, adapter=ADAPTER, statistics=["input_moment", "input_norm"])
    tokens = torch.cat([model.embed(batch["ids"])[batch["mask"].bool()] for batch in batches])
    torch.testing.assert_close(stats["input_moment"]["text.0"], (tokens.T @ tokens / len(tokens)).detach())
    for name, norm in stats["input_norm"].items():
        torch.testing.assert_close(stats["input_moment"][name].diagonal().sqrt(), norm)
    assert stats.counts["input_moment"] == stats.counts["input_norm"]


def test_an_input_that_feeds_three_layers_counts_in_all_of_them():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in "qkv"})
    adapter = every(model, forward=lambda m, x: [m[name](x) for name in "qkv"])
    x = torch.randn(7, 4)
    stats = mf.calibrate(model, [x], adapter=adapter, statistics=["input_moment"])
    for name in "qkv":
        torch.testing.assert_close(stats["input_moment"][name], x.T @ x / 7)


def test_a_saved_moment_is_read_back_and_serves_every_fitter(tmp_path):
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["input_moment"])
    loaded = mf.Stats.load(stats.save(tmp_path / "stats.safetensors"))
    one, other = (mf.prune(two_towers(), "lobs", 0.75, given, adapter=ADAPTER) for given in (stats, loaded))
    assert one.masks[0.75] == other.masks[0.75] == prune("lobs", 0.75).masks[0.75]
    assert one.settings["batches"] == 4


@pytest.mark.parametrize("method", ["multiflow-rescale", "multiflow-refit", "lobs"])
def test_a_sparsity_does_not_depend_on_the_others(method):
    together, alone = prune(method, [0.5, 0.75]), prune(method, 0.75)
    assert together.masks[0.75] == alone.masks[0.75]
    assert all(torch.equal(w, alone.weights[0.75][name]) for name, w in together.weights[0.75].items())


@pytest.mark.parametrize("method", ["multiflow-rescale", "multiflow-refit"])
def test_the_masks_are_those_of_multiflow(method):
    assert prune(method, 0.75).masks[0.75] == prune("multiflow", 0.75).masks[0.75]


@pytest.mark.parametrize("method", ["multiflow-rescale", "multiflow-refit", "lobs"])
def test_sparsity_zero_keeps_everything(method):
    result = prune(method, 0.0)
    assert result.masks[0.0].sparsity == 0
    for name, weight in result.weights[0.0].items():
        torch.testing.assert_close(weight, two_towers().get_submodule(name).weight.detach())


@pytest.mark.parametrize("pattern", ["per-row", "2:4"])
@pytest.mark.parametrize("method", ["multiflow-rescale", "multiflow-refit", "lobs"])
def test_patterns(method, pattern):
    result = prune(method, 0.5, pattern=pattern)
    for mask in result.masks[0.5].values():
        rows = mask.reshape(-1, 4) if pattern == "2:4" else mask
        assert set(rows.sum(1).tolist()) == {rows.shape[1] // 2}


@torch.no_grad()
def test_outputs_stay_closer_than_with_the_mask_alone():
    model, generator = chain(32, 24), torch.Generator().manual_seed(0)
    x = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    dense = model(x)
    errors = {}
    for method in ("multiflow", "multiflow-refit", "lobs"):
        sparse = copy.deepcopy(model)
        mf.prune(model, method, 0.75, [x], adapter=every(model)).apply_(sparse, 0.75)
        errors[method] = (sparse(x) - dense).square().mean().item()
    assert errors["lobs"] < errors["multiflow-refit"] < errors["multiflow"]


def test_budgets_that_need_scores_are_refused():
    with pytest.raises(
        mf.MultiflowError, match="needs the budget of a layer before it scores it, which allocation 'gl"
    ):
        prune("lobs", 0.5, allocation="global")


def test_an_allocation_of_ones_own():
    result = prune("lobs", 0.5, allocation=lambda layout, sparsity: dict.fromkeys(layout, 11))
    assert {int((~mask).sum()) for mask in result.masks[0.5].values()} == {11}


def test_a_fitter_that_does_what_it_may_not():
    @mf.fitter
    def in_place(weight, choose):
        """Say."""
        return choose(weight.abs()), weight.mul_(2)

    @mf.fitter
    def too_few(weight, choose):
        """Say."""
        return torch.ones_like(weight, dtype=torch.bool), weight

    @mf.fitter
    def not_finite(weight, choose):
        """Say."""
        return choose(weight.abs()), weight / 0

    @mf.fitter
    def other_shape(weight, choose):
        """Say."""
        return choose(weight.abs()), weight.T

    for method, said in {
        in_place: "changed the weight of layer 'text.0' in place",
        too_few: "drops 0 weights of layer 'text.0'; expected 192",
        not_finite: "gave NaN or Inf weights for layer 'text.0'",
        other_shape: r"gave weights \(16, 24\) for layer 'text.0'; expected \(24, 16\)",
    }.items():
        with pytest.raises(mf.MultiflowError, match=said):
            prune(method, 0.5)


def test_until_stable_is_for_scores():
    with pytest.raises(mf.MultiflowError, match="until_stable"):
        prune("lobs", 0.5, until_stable=0.99)
