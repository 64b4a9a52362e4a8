"""Every pruner on every kind of model: what holds for all of them."""

from __future__ import annotations

import copy

import pytest
import torch

import multiflow as mf
from multiflow.pruners import PRUNERS
from multiflow.types import PerRow
from tests import golden_data
from tests.small import ADAPTER, towers_batches, two_towers

MODELS = {
    "xvlm": (lambda: golden_data.model("xvlm"), lambda: golden_data.batches("xvlm")[:3], None),
    "blip": (lambda: golden_data.model("blip"), lambda: golden_data.batches("blip")[:3], None),
    "vit": (lambda: golden_data.model("dino"), lambda: golden_data.batches("dino")[:3], None),
    "custom, tied": (two_towers, towers_batches, ADAPTER),
}


@pytest.fixture(params=MODELS)
def kind(request):
    return MODELS[request.param]


@pytest.fixture(params=list(PRUNERS))
def method(request):
    return request.param


def run(kind, method, model=None, batches=None, **options):
    build, data, adapter = kind
    return mf.prune(model or build(), method, [0.5, 0.75], batches or data(), adapter=adapter, **options)


def test_sparsity_is_exact(kind, method):
    result = run(kind, method)
    pruner = PRUNERS[method]
    for sparsity, masks in result.masks.items():
        count = sum(int((~mask).sum()) for mask in masks.values())
        if pruner.allocation == "global":
            assert count == round(sparsity * masks.layout.size)
        elif isinstance(pruner.pattern, PerRow):
            assert all(
                bool(((~masks[x.name]).sum(1) == round(sparsity * x.shape[1])).all()) for x in masks.layout.layers
            )
        else:
            assert abs(count - sparsity * masks.layout.size) <= len(masks) / 2 + 1


def test_the_same_twice(kind, method):
    first, second = run(kind, method), run(kind, method)
    assert all(first.masks[s] == second.masks[s] for s in first.masks)


def test_the_order_of_the_batches_does_not_matter(kind, method):
    if kind is MODELS["blip"] and "gradient" in PRUNERS[method].statistics:
        pytest.skip("BLIP's loss carries queues and momentum copies from batch to batch: its gradients have an order")
    batches = kind[1]()
    first, second = run(kind, method, batches=batches), run(kind, method, batches=batches[::-1])
    assert all(first.masks[s] == second.masks[s] for s in first.masks)


def test_the_model_is_left_bit_for_bit_as_it_was(kind, method):
    model = kind[0]().train()
    before = copy.deepcopy(model.state_dict())
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    owners = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    run(kind, method, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)} == owners
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert all(module.training for module in model.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_works(kind, method, dtype):
    if kind[2] is not None and dtype == torch.bfloat16:
        model, batches = two_towers().bfloat16(), [b | {"pixels": b["pixels"].bfloat16()} for b in towers_batches()]
        result = run(kind, method, model=model, batches=batches)
    else:
        result = run(kind, method, model=kind[0]().to(dtype))
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=0.02)


def test_masks_round_trip_through_a_file_and_fit_the_model(kind, method, tmp_path):
    model = kind[0]()
    result = run(kind, method, model=model)
    loaded = mf.Masks.load(result.masks[0.75].save(tmp_path / "mask.safetensors"))
    assert loaded == result.masks[0.75]
    result.apply_(model, 0.75)
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in loaded)
    assert zeros >= sum(int((~mask).sum()) for mask in loaded.values())
    loaded.apply_(model)
