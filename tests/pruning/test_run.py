from __future__ import annotations

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.base.types import Unstructured
from multiflow.methods import PRUNERS
from tests.small import ADAPTER, QUICK, chain, every, towers_batches, two_towers

PER_LAYER = [name for name, pruner in PRUNERS.items() if pruner.allocation != "global"]
GLOBAL = [name for name, pruner in PRUNERS.items() if pruner.allocation == "global"]


def prune(method="multiflow", sparsity=0.5, model=None, **options):
    options = QUICK.get(method, {}) | options
    return mf.prune(model or two_towers(), method, sparsity, towers_batches(), adapter=ADAPTER, **options)


def dropped(masks):
    return {name: int((~mask).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.37, 0.5, 0.63, 0.999])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", GLOBAL)
def test_global_methods_drop_exactly_round_s_n_in_all(method, ties, sparsity):
    model = two_towers()
    if ties:
        for parameter in model.parameters():
            parameter.data.round_(decimals=1)
    masks = prune(method, sparsity, model).masks[sparsity]
    assert sum(dropped(masks).values()) == round(sparsity * masks.layout.size)


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.37, 0.5, 0.63, 0.999])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", PER_LAYER)
def test_other_methods_drop_exactly_their_budget_in_every_layer(method, ties, sparsity):
    model = two_towers()
    if ties:
        for parameter in model.parameters():
            parameter.data.round_(decimals=1)
    masks = prune(method, sparsity, model).masks[sparsity]
    pruner = PRUNERS[method]
    for layer in masks.layout.layers:
        rows, columns = layer.shape
        if pruner.allocation == "uniform" and isinstance(pruner.pattern, Unstructured):
            assert dropped(masks)[layer.name] == round(sparsity * layer.size)
        elif pruner.allocation == "uniform":
            assert (~masks[layer.name]).sum(1).tolist() == [round(sparsity * columns)] * rows
    if pruner.allocation == "multimodal":
        for layers in masks.layout.groups.values():
            assert sum(dropped(masks)[x.name] for x in layers) == round(sparsity * sum(x.size for x in layers))


def test_the_multimodal_budget_is_that_of_magnitude_modality():
    flow, magnitude = prune("multiflow"), prune("magnitude-modality")
    assert dropped(flow.masks[0.5]) == dropped(magnitude.masks[0.5])
    assert flow.masks[0.5] != magnitude.masks[0.5]


@pytest.mark.parametrize("method", PRUNERS)
def test_sparsity_zero_keeps_all(method):
    masks = prune(method, [0.0]).masks[0.0]
    assert all(bool(mask.all()) for mask in masks.values())
    assert masks.sparsity == 0.0


def test_one_pass_serves_all_sparsities_and_they_equal_single_runs():
    result = prune(sparsity=[0.9, 0.5])
    assert list(result.masks) == [0.9, 0.5]
    assert result.masks[0.9] == prune(sparsity=0.9).masks[0.9]
    assert result.masks[0.5] == prune(sparsity=0.5).masks[0.5]


def test_sparsities_of_the_paper_are_the_default():
    assert list(prune(sparsity=None).masks) == [0.63, 0.75, 0.9]
    assert list(prune("magnitude", None, pattern="2:4").masks) == [0.5]


@pytest.mark.parametrize("method", ["multiflow", "magnitude", "wanda"])
def test_n_of_m_in_every_block(method):
    masks = prune(method, None, pattern="3:4").masks[0.25]
    for mask in masks.values():
        assert bool((mask.view(-1, 4).sum(1) == 3).all())


def test_per_row_on_any_method():
    masks = prune("magnitude", 0.63, pattern="per-row").masks[0.63]
    for layer in masks.layout.layers:
        assert bool(((~masks[layer.name]).sum(1) == round(0.63 * layer.shape[1])).all())


def test_per_row_with_another_allocation_rounds_its_budget_to_whole_rows():
    masks = prune("wanda", 0.5, allocation="multimodal").masks[0.5]
    whole = prune("multiflow", 0.5).masks[0.5]
    for layer in masks.layout.layers:
        per_row = set((~masks[layer.name]).sum(1).tolist())
        assert per_row == {round(dropped(whole)[layer.name] / layer.size * layer.shape[1])}


@pytest.mark.parametrize("allocation", ["global", "uniform", "multimodal"])
def test_any_allocation_by_name(allocation):
    result = prune("ria", 0.5, allocation=allocation)
    assert result.settings["allocation"] == allocation
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=1e-3)


def test_your_own_allocation():
    masks = prune("ria", 0.5, allocation=lambda layout, sparsity: dict.fromkeys(layout, 3)).masks[0.5]
    assert set(dropped(masks).values()) == {3}


def test_a_pruner_from_outside_in_under_ten_lines():
    @mf.scorer(allocation="multimodal")
    def root_flow(weight, *, input_norm, power=0.5):
        """Magnitude times a power of the input's norm."""
        return weight.abs() * input_norm**power

    assert prune("root_flow", 0.5).masks[0.5] == prune(root_flow, 0.5, power=0.5).masks[0.5]
    assert prune("root_flow", 0.5, power=4.0).masks[0.5] != prune("root_flow", 0.5).masks[0.5]
    assert prune("root_flow").settings["hyper"] == {"power": 0.5}


def test_statistics_serve_other_methods():
    first = prune("multiflow")
    again = mf.prune(two_towers(), "wanda", 0.5, first.stats, adapter=ADAPTER)
    assert again.masks[0.5] == prune("wanda").masks[0.5]
    with pytest.raises(mf.MultiflowError, match="have no 'input_norm' of layer '0'"):
        model = chain(4, 4)
        mf.prune(model, "wanda", 0.5, first.stats, adapter=every(model))


def test_a_generator_is_enough_for_one_pass_and_a_spent_one_is_told():
    batches = iter(towers_batches())
    model = two_towers()
    assert mf.prune(model, "wanda", 0.5, batches, adapter=ADAPTER).masks[0.5] == prune("wanda").masks[0.5]
    with pytest.raises(mf.MultiflowError, match="a generator that was used up"):
        mf.prune(model, "wanda", 0.5, batches, adapter=ADAPTER)


def test_the_seed_decides_random_masks_and_nothing_else():
    assert prune("random", seed=1).masks[0.5] == prune("random", seed=1).masks[0.5]
    assert prune("random", seed=1).masks[0.5] != prune("random", seed=2).masks[0.5]
    state = torch.random.get_rng_state()
    prune("random")
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "multiflw"}, "unknown pruner 'multiflw'.*did you mean 'multiflow'"),
        ({"pattern": "2-4"}, "unknown pattern '2-4'; expected 'unstructured', 'per-row' or 'N:M'"),
        ({"pattern": "4:4"}, "keeps 4 of 4; N:M needs 0 < N < M"),
        ({"pattern": "5:7", "sparsity": None}, "7 divides, but layer 'text.0' has 16 inputs"),
        ({"pattern": "2:4", "allocation": "global"}, "fixes the budget of every layer"),
        ({"allocation": "globl"}, "unknown allocation 'globl'.*did you mean 'global'"),
        ({"alpha": 3}, "pruner 'multiflow' has no hyper-parameter 'alpha'"),
    ],
)
def test_bad_settings_are_told_before_anything_is_computed(options, message):
    with pytest.raises(mf.MultiflowError, match=message):
        mf.prune(two_towers(), **{"sparsity": 0.5, "batches": iter([1 / 1]), "adapter": ADAPTER} | options)


def test_data_that_are_missing():
    with pytest.raises(mf.MultiflowError, match="pruner 'wanda' needs calibration data"):
        mf.prune(two_towers(), "wanda", 0.5, adapter=ADAPTER)


def test_float64_weights_are_ranked_in_float64():
    model = chain(8, 8).double()
    base = torch.arange(64).view(8, 8)
    model[0].weight = nn.Parameter(1 + base.double() * 1e-12)
    masks = mf.prune(model, "magnitude", 0.5, adapter=every(model)).masks[0.5]
    assert torch.equal(masks["0"], base >= 32)


@pytest.mark.parametrize("method", PRUNERS)
def test_float64_models_with_every_method(method):
    model = two_towers().double()
    batches = [b | {"pixels": b["pixels"].double()} for b in towers_batches()]
    result = mf.prune(model, method, 0.5, batches, adapter=ADAPTER, **QUICK.get(method, {}))
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=0.02)


def test_random_masks_of_layers_of_one_shape_are_independent():
    model = chain(64, 64, 64)
    scores = mf.prune(model, "random", 0.5, adapter=every(model)).scores
    both = torch.stack([scores["0"].flatten(), scores["1"].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def test_n_of_m_of_the_method_itself_holds_in_every_layer_whatever_its_allocation():
    model = chain(8, 8, 8)
    model[0].weight.data.mul_(1000)  # a global ranking would leave this layer dense
    mf.scorer("blocks", allocation="global", pattern="2:4")(lambda weight: weight.abs())
    assert mf.prune(model, "blocks", adapter=every(model)).masks[0.5].sparsities() == {"0": 0.5, "1": 0.5}


def test_statistics_of_another_width_name_the_layer():
    model, other = chain(4, 4), chain(6, 4)
    stats = mf.calibrate(other, [torch.ones(2, 6)], adapter=every(other))
    with pytest.raises(mf.MultiflowError, match=r"of layer '0' has shape \(6,\), the layer \(4, 4\)"):
        mf.prune(model, "wanda", 0.5, stats, adapter=every(model))


@pytest.mark.parametrize(("method", "options", "taken"), [
    ("itersnip", {"steps": 1, "batches_per_step": 1}, 1),
    ("itersnip", {"steps": 3, "batches_per_step": 2}, 6),
    ("chita", {"batches_per_step": 3}, 3),
    ("chita", {}, 4),  # as many as there are
    ("tamt", {"steps": 3}, 3),
    ("tamt", {"steps": 6}, 6),
    ("wanda", {}, 4),
    ("lobs", {}, 4),
    ("magnitude", {}, 0),
])  # fmt: skip
def test_the_batches_that_were_taken_are_told(method, options, taken):
    for batches in (towers_batches(), (batch for batch in towers_batches())):
        if taken > 4 and not isinstance(batches, list):
            continue
        result = mf.prune(two_towers(), method, 0.5, batches, adapter=ADAPTER, **options)
        assert result.settings["batches"] == result.masks[0.5].settings["batches"] == taken
