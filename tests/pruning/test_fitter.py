from __future__ import annotations

import copy
import re
import threading
import time
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multiflow as mf
from multiflow.calibration import sums_size
from multiflow.methods import find_pruner
from multiflow.pruning import fitter
from multiflow.pruning.fitter import work_size
from tests.small import ADAPTER, QUICK, chain, every, towers_batches, two_towers


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


@pytest.mark.parametrize("method", ["multiflow-refit", "lobs"])
def test_a_sparsity_does_not_depend_on_the_others(method):
    together, alone = prune(method, [0.5, 0.75]), prune(method, 0.75)
    assert together.masks[0.75] == alone.masks[0.75]
    assert all(torch.equal(w, alone.weights[0.75][name]) for name, w in together.weights[0.75].items())


def test_the_masks_of_refit_are_those_of_multiflow():
    assert prune("multiflow-refit", 0.75).masks[0.75] == prune("multiflow", 0.75).masks[0.75]


@pytest.mark.parametrize("method", ["multiflow-refit", "lobs"])
def test_sparsity_zero_keeps_everything(method):
    result = prune(method, 0.0)
    assert result.masks[0.0].sparsity == 0
    for name, weight in result.weights[0.0].items():
        torch.testing.assert_close(weight, two_towers().get_submodule(name).weight.detach())


@pytest.mark.parametrize("pattern", ["per-row", "2:4"])
@pytest.mark.parametrize("method", ["multiflow-refit", "lobs"])
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
    with pytest.raises(mf.MultiflowError, match="needs the budget of a layer .*allocation 'gl"):
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


class Peak(TorchDispatchMode):
    """The bytes of all tensors made inside that are there at once, at most."""

    def __init__(self):
        super().__init__()
        self.there: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        made = func(*args, **(kwargs or {}))
        for value in filter(torch.is_tensor, tree_leaves(made)):
            storage = value.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.there:
                self.there[storage._cdata] = storage.nbytes()
                self.most = max(self.most, sum(self.there.values()))
                weakref.finalize(storage, self.there.pop, storage._cdata, None)
        return made


@pytest.mark.parametrize("shape", [(256, 256), (512, 64), (64, 512)])
@pytest.mark.parametrize("method", ["multiflow-refit", "lobs"])
def test_a_layer_takes_what_is_said_of_it(method, shape):
    model = chain(shape[1], shape[0], shape[0])  # a second layer, no larger: one at a time
    names, adapter = ["input_moment"], every(model)
    stats = mf.calibrate(model, [torch.randn(40, shape[1])], adapter=adapter, statistics=names)
    said = max(work_size(layer, names) for layer in adapter.layout(model).layers)
    with Peak() as peak:
        result = mf.prune(model, method, 0.75, stats, adapter=adapter)
    new = sum(weight.nbytes for weight in result.weights[0.75].values())
    assert peak.most <= said + new
    if method == "lobs":
        assert said < 1.1 * peak.most


def test_the_memory_is_stated_before_the_first_batch(caplog):
    caplog.set_level("INFO", logger="multiflow")
    layout = ADAPTER.layout(two_towers())

    def batches():
        caplog.records.append("batch")
        yield from towers_batches()

    mf.prune(two_towers(), "lobs", [0.5, 0.75], batches(), adapter=ADAPTER)
    first, second = (record.getMessage() for record in caplog.records[:2])
    assert caplog.records[2] == "batch"
    size = 2 * 4 * layout.size + max(work_size(layer, ["input_moment"]) for layer in layout.layers)
    assert first == f"lobs holds new weights of 2 sparsities and one layer to work with: {size / 1e6:.1f} MB"
    assert re.match(r"calibration holds input_moment of 5 layers: [\d.]+ MB", second)


@pytest.mark.parametrize("method", ["multiflow-refit", "lobs"])
def test_more_than_is_free_is_refused_before_the_first_batch(method, monkeypatch):
    def never():
        raise AssertionError("a batch was asked for")
        yield

    layout, needs = ADAPTER.layout(two_towers()), find_pruner(method).needs
    need = 4 * layout.size + max(work_size(layer, needs) for layer in layout.layers)
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=needs)
    for given, size in ((never(), need + sums_size(layout, needs)), (stats, need)):
        monkeypatch.setattr(fitter, "free_memory", lambda device, size=size: size - 1)
        what = f"{needs[0]}, new" if given is not stats else "new"
        said = f"^{what} weights and one layer to work with need .* are free; leave wide layers dense"
        with pytest.raises(mf.MultiflowError, match=said):
            mf.prune(two_towers(), method, 0.5, given, adapter=ADAPTER)
    with pytest.raises(mf.MultiflowError, match="of 2 sparsities .* free; ask for fewer"):
        mf.prune(two_towers(), method, [0.5, 0.75], stats, adapter=ADAPTER)
    monkeypatch.setattr(fitter, "free_memory", lambda device: need)
    assert mf.prune(two_towers(), method, 0.5, stats, adapter=ADAPTER).masks[0.5].sparsity == 0.5


def test_a_fitter_that_needs_both_statistics_takes_one_pass():
    @mf.fitter
    def both(weight, choose, *, input_norm, input_moment):
        """Say."""
        assert torch.allclose(input_moment.diagonal().sqrt(), input_norm)
        return choose(weight.abs() * input_norm), weight

    assert (
        prune("both", 0.5).masks == mf.prune(two_towers(), "both", 0.5, iter(towers_batches()), adapter=ADAPTER).masks
    )


def test_progress_counts_the_layers_of_all_sparsities():
    told = []
    prune("lobs", (0.5, 0.9), progress=lambda *step: told.append(step))
    layers = len(ADAPTER.layout(two_towers()))
    assert [step for step in told if step[0] == "fit"] == [("fit", n, 2 * layers) for n in range(1, 2 * layers + 1)]


def test_scores_that_a_fitter_chooses_by_may_be_of_any_dtype_but_not_nan():
    for name, change in {
        "half": lambda scores: scores.bfloat16(),
        "whole": lambda scores: (scores * 1000).long(),
        "gone": lambda scores: scores.masked_fill(scores < 0.01, -torch.inf),
    }.items():
        mf.fitter(name)(lambda weight, choose, change=change: (choose(change(weight.abs())), weight))
        mf.scorer(f"same {name}")(lambda weight, change=change: change(weight.abs()).clamp(min=-1))
        assert prune(name, 0.5).masks == prune(f"same {name}", 0.5).masks
    for name, change in {
        "nan": lambda scores: scores / 0 * 0,
        "infinite": lambda scores: scores / 0,
        "flat": lambda scores: scores.flatten(),
        "list": lambda scores: scores.tolist(),
    }.items():
        mf.fitter(name)(lambda weight, choose, change=change: (choose(change(weight.abs())), weight))
        with pytest.raises(mf.MultiflowError, match=rf"pruner '{name}' gave .*scores .*for layer 'text.0'"):
            prune(name, 0.5)


def test_an_allocation_of_ones_own_that_asks_for_scores_is_refused():
    def by_score(layout, sparsity, *, scores):
        return {name: int(scores[name].numel() * sparsity) for name in layout}

    said = "before it scores it, which allocation 'by_score' cannot give; pass allocation='uniform', 'multimodal' or a"
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune(two_towers(), "lobs", 0.5, adapter=ADAPTER, batches=[], allocation=by_score)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["exchange", "alps", "sparsegpt", "lobs", "admm", "multiflow-refit"])
def test_layers_side_by_side_have_the_bits_of_one_after_the_other(method, two_threads):
    seen = set()

    @mf.fitter("watched")
    def watched(weight, choose, *, input_moment):
        """Say."""
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.01)
        return choose(weight.abs()), weight

    prune("watched", 0.5)
    assert {inside for _, inside in seen} == {1}
    assert len(seen) == 2
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["input_moment"])
    together = mf.prune(two_towers(), method, [0.5, 0.75], stats, adapter=ADAPTER)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = mf.prune(two_towers(), method, [0.5, 0.75], stats, adapter=ADAPTER)
    for sparsity in (0.5, 0.75):
        assert together.masks[sparsity] == alone.masks[sparsity]
        assert all(torch.equal(w, alone.weights[sparsity][n]) for n, w in together.weights[sparsity].items())


def test_what_goes_wrong_beside_another_layer_is_said_and_threads_are_as_before(two_threads):
    @mf.fitter("breaks")
    def breaks(weight, choose):
        """Say."""
        raise mf.MultiflowError(f"layer '{choose.layer}' breaks")

    with pytest.raises(mf.MultiflowError, match=r"layer 'image.0' breaks|layer 'text.0' breaks"):
        prune("breaks", 0.5)
    assert torch.get_num_threads() == 2


def test_fewer_layers_side_by_side_where_memory_is_scarce(two_threads, monkeypatch, caplog):
    caplog.set_level("INFO", logger="multiflow")
    layout, needs = ADAPTER.layout(two_towers()), find_pruner("lobs").needs
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=needs)
    sizes = sorted((work_size(layer, needs) for layer in layout.layers), reverse=True)
    new = 4 * layout.size
    for free, said in (
        (new + sizes[0] + sizes[1], "2 layers to work"),
        (new + sizes[0] + sizes[1] - 1, "one layer to work"),
    ):
        caplog.clear()
        monkeypatch.setattr(fitter, "free_memory", lambda device, free=free: free)
        mf.prune(two_towers(), "lobs", 0.5, stats, adapter=ADAPTER, **QUICK["lobs"])
        size = new + sizes[0] + (sizes[1] if said[0] == "2" else 0)
        assert caplog.messages[0] == f"lobs holds new weights and {said} with: {size / 1e6:.1f} MB"


@pytest.mark.parametrize(("sparsity", "shape"), [(0.75, (128, 96)), (0.5, (256, 64)), (0.9, (32, 256))])
def test_exchange_takes_what_is_said_of_it(sparsity, shape):
    model = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0]))
    names, adapter = ["input_moment"], every(model)
    generator = torch.Generator().manual_seed(0)
    x, mix = (torch.randn(rows, shape[1], generator=generator) for rows in (4 * shape[1], shape[1]))
    stats = mf.calibrate(model, [x @ mix], adapter=adapter, statistics=names)
    said = mf.estimate(model, "exchange", sparsity, adapter=adapter).memory - sums_size(adapter.layout(model), names)
    with Peak() as peak:
        mf.prune(model, "exchange", sparsity, stats, adapter=adapter)
    assert peak.most <= said
