"""Every pruner on every kind of model: what holds for all of them."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

import multiflow as mf
from multiflow.base.types import PerRow
from multiflow.methods import PRUNERS
from multiflow.worlds.shapes.models import shapes_model
from multiflow.worlds.shapes.pretrain import joint_batch
from tests import golden_data
from tests.small import ADAPTER, QUICK, towers_batches, two_towers
from tests.tiny import FAMILIES, TOKENIZER


def pretrained(family):
    """A model of few layers: what costs time here is how often something is done, not how large it is."""
    return shapes_model(FAMILIES[family], len(TOKENIZER)).eval()


def batches_of(family):
    return [joint_batch(FAMILIES[family], TOKENIZER, position) for position in range(3)]


MODELS = {
    "xvlm": (lambda: pretrained("xvlm"), lambda: batches_of("xvlm"), None),
    "blip": (lambda: pretrained("blip"), lambda: batches_of("blip"), None),
    "vit": (lambda: golden_data.model("dino"), lambda: golden_data.batches("dino")[:3], None),
    "custom, tied": (two_towers, towers_batches, ADAPTER),
}


@pytest.fixture(params=MODELS, scope="module")  # so that the tests of one pruning stand together
def kind(request):
    return request.param


@pytest.fixture(params=list(PRUNERS), scope="module")
def method(request):
    return request.param


@cache
def built(kind):
    return MODELS[kind][0]()


def fresh(kind):
    return copy.deepcopy(built(kind))


def run(kind, method, model=None, batches=None, sparsity=(0.5, 0.75)):
    _, data, adapter = MODELS[kind]
    settings = QUICK.get(method, {})
    return mf.prune(model or built(kind), method, list(sparsity), batches or data(), adapter=adapter, **settings)


@cache
def first(kind, method):
    return run(kind, method)


@cache
def second(kind, method):
    """Run at one of both sparsities on a model in training mode.

    Returns the result, and what the model was before, is after, and is itself.
    """
    model = fresh(kind).train()
    flagged = next(model.parameters())
    flagged.requires_grad_(False).grad = torch.ones_like(flagged)
    torch.manual_seed(7)
    before = state(model)
    return run(kind, method, model=model, sparsity=[0.75]), before, state(model), model


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8).clone()


def state(model):
    """All there is to see of a model and its surroundings: bits, memory, flags, ties, attributes, hooks."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    hooks = [name for name in vars(torch.nn.Module()) if "hook" in name]
    return {
        "state_dict": {name: bits(value) for name, value in model.state_dict().items()},
        "buffers": {name: bits(value) for name, value in model.named_buffers(remove_duplicate=False)},
        "gradients": {name: bits(p.grad) for name, p in parameters.items() if p.grad is not None},
        "random": {"state": torch.random.get_rng_state()},
        "owners": {name: id(p) for name, p in parameters.items()},
        "memory": {name: t.data_ptr() for name, t in [*parameters.items(), *model.named_buffers()]},
        "versions": {name: p._version for name, p in parameters.items()},
        "flags": {name: p.requires_grad for name, p in parameters.items()},
        "attributes": {path: set(vars(module)) for path, module in model.named_modules()},
        "modes": {path: module.training for path, module in model.named_modules()},
        "hooks": {path: [dict(getattr(m, h) or {}) for h in hooks] for path, m in model.named_modules()},
        "gradient hooks": {
            name: [dict(hooks or {}) for hooks in (p._backward_hooks, p._post_accumulate_grad_hooks)]
            for name, p in parameters.items()
        },
    }


def dropped(masks):
    return {name: int((~mask).sum()) for name, mask in masks.items()}


def test_sparsity_is_exact(kind, method):
    pruner = PRUNERS[method]
    for sparsity, masks in first(kind, method).masks.items():
        count, layout = dropped(masks), masks.layout
        if pruner.allocation == "global":
            assert sum(count.values()) == round(sparsity * layout.size)
        elif isinstance(pruner.pattern, PerRow):
            for layer in layout.layers:
                assert set((~masks[layer.name]).sum(1).tolist()) == {round(sparsity * layer.shape[1])}
        elif pruner.allocation == "uniform":
            assert count == {layer.name: round(sparsity * layer.size) for layer in layout.layers}
        else:
            for layers in layout.groups.values():
                assert sum(count[x.name] for x in layers) == round(sparsity * sum(x.size for x in layers))


def test_the_same_twice_alone_and_in_training_mode(kind, method):
    one, two = first(kind, method), second(kind, method)[0]
    assert one.masks[0.75] == two.masks[0.75]
    assert (one.weights is not None) == (two.weights is not None) == PRUNERS[method].changes_weights
    for s, weights in (two.weights or {}).items():
        assert all(torch.equal(weight, one.weights[s][name]) for name, weight in weights.items())


def test_the_model_is_left_bit_for_bit_as_it_was(kind, method):
    _, before, after, _ = second(kind, method)
    for what, value in before.items():
        if what in ("state_dict", "buffers", "gradients", "random"):
            assert value.keys() == after[what].keys()
            assert all(torch.equal(tensor, after[what][name]) for name, tensor in value.items()), what
        else:
            assert value == after[what], what


def test_the_order_of_the_batches_does_not_matter(kind, method):
    pruner = PRUNERS[method]
    if pruner.kind == "learner" or pruner.hyper.get("steps", 1) > 1:
        pytest.skip("what comes after the first step depends on the batches that came before")
    if kind == "blip" and ("gradient" in pruner.statistics or pruner.kind == "solver"):
        pytest.skip("BLIP's loss carries queues and momentum copies from batch to batch: its gradients have an order")
    other = run(kind, method, batches=MODELS[kind][1]()[::-1], sparsity=[0.5])
    assert first(kind, method).masks[0.5] == other.masks[0.5]


def test_bfloat16_works(kind, method):
    model, batches = fresh(kind).bfloat16(), MODELS[kind][1]()
    if MODELS[kind][2] is not None:
        batches = [batch | {"pixels": batch["pixels"].bfloat16()} for batch in batches]
    result = run(kind, method, model=model, batches=batches, sparsity=[0.5])
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=0.02)
    for weights in (result.weights or {}).values():
        assert all(weight.dtype == torch.bfloat16 and weight.isfinite().all() for weight in weights.values())


def test_masks_round_trip_through_a_file_and_fit_the_model(kind, method, tmp_path):
    model, result = fresh(kind), first(kind, method)
    loaded = mf.Masks.load(result.masks[0.75].save(tmp_path / "mask.safetensors"))
    assert loaded == result.masks[0.75]
    result.apply_(model, 0.75)
    for name, mask in loaded.items():
        weight = model.get_submodule(name).weight
        assert not weight[~mask].any()
        if result.weights is not None:
            assert torch.equal(weight, result.weights[0.75][name])
    loaded.apply_(model)
