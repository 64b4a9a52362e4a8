from __future__ import annotations

import copy

import pytest
import torch

import multiflow as mf
from multiflow.methods import PRUNERS
from tests import golden_data
from tests.families.blip.sizes import pairs, small_model
from tests.small import QUICK

METHODS = {
    "omp": ("magnitude", 1),
    "omp_local": ("magnitude-layer", 1),
    "omp_modality": ("magnitude-modality", 1),
    "l2": ("l2", 1),
    "lamp": ("lamp", 1),
    "multiflow_tied": ("multiflow", 2),
}


@pytest.fixture(scope="module")
def golden():
    return golden_data.model("blip")


@pytest.mark.parametrize("tag", METHODS)
def test_masks_equal_the_published_ones(golden, tag):
    names = mf.original_names(golden)
    method, tolerance = METHODS[tag]
    result = mf.prune(golden, method, [0.63, 0.75, 0.9], golden_data.batches("blip")[:4])
    for sparsity, masks in result.masks.items():
        expected = golden_data.masks("blip")[tag][sparsity]
        assert {names[name] for name in masks} == set(expected)
        for name, mask in masks.items():
            assert int((mask != expected[names[name]]).sum()) <= tolerance, (sparsity, name)


def test_statistics_sum_over_encoder_and_decoder(golden):
    names, values = mf.original_names(golden), golden_data.tensors("blip", "values")
    stats = mf.calibrate(golden, golden_data.batches("blip")[:4])["input_norm"]
    for name, norm in stats.items():
        ratio = norm.double().square() / values[f"multiflow_tied_input_sqsum/{names[name]}"].double()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_gradients_run_on_over_the_batches_as_published(golden):
    """The mean gradient of four batches, momentum copies and queues carried on, gives the published SNIP scores."""
    model, names, values = golden_data.model("blip"), mf.original_names(golden), golden_data.tensors("blip", "values")
    adapter = mf.adapter_for(model)
    weights = {name: model.get_submodule(name).weight for name in adapter.layout(model)}
    for batch in golden_data.batches("blip")[:4]:
        (adapter.loss(model, batch) / 4).backward()
    scores = {name: (weight * weight.grad).abs().detach() for name, weight in weights.items()}
    total = sum(score.sum() for score in scores.values())
    for name, score in scores.items():
        expected = values[f"snip/{names[name]}"]
        torch.testing.assert_close(score / total, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_the_layout_of_the_pretraining_model(golden):
    layout = mf.adapter_for(golden).layout(golden)
    names = mf.original_names(golden)
    assert {names[name]: layer.shape for name, layer in layout.items()} == golden_data.prunable("blip")
    assert {group: sum(x.size for x in layers) for group, layers in layout.groups.items()} == {
        "vision": 98304, "text": 196608
    }  # fmt: skip
    key = layout["text_encoder.encoder.layer.0.crossattention.self.key"]
    assert (key.stream, key.aliases) == ("image", ("text_decoder.bert.encoder.layer.0.crossattention.self.key",))
    own = layout["text_decoder.bert.encoder.layer.0.attention.output.dense"]
    assert (own.stream, own.aliases) == ("text", ())
    assert layout["vision_model.encoder.layers.0.self_attn.qkv"].stream is None


@torch.no_grad()
def test_the_loss_of_the_pretraining_model_has_hard_targets_and_counts_regions_half():
    expected = golden_data.tensors("blip", "expected")
    batch, region = golden_data.batches("blip")[:2]
    model = golden_data.model("blip")
    model.config.alpha = 0.4  # training mixes the momentum model in, calibration does not
    loss = mf.adapter_for(model).loss
    general = loss(copy.deepcopy(model), batch)
    torch.testing.assert_close(general, sum(expected[f"loss_{x}"] for x in ("itc", "itm", "lm")), rtol=1e-4, atol=0)
    other = copy.deepcopy(model)
    both = [loss(other, batch), loss(other, region)]
    torch.testing.assert_close(loss(model, batch | {"region": region}), torch.stack(both).mean())


def test_keys_of_other_models_in_a_batch_do_no_harm():
    model, batch = small_model(), pairs()
    more = batch | {"mlm_input_ids": batch["input_ids"], "mlm_positions": torch.zeros(4, 1)}
    assert torch.equal(mf.adapter_for(model).loss(copy.deepcopy(model), more), mf.adapter_for(model).loss(model, batch))
    mf.calibrate(model, [more])


@pytest.mark.parametrize("method", PRUNERS)
def test_every_pruner_leaves_the_pretraining_model_as_it_was(method):
    model = small_model().train()
    before = copy.deepcopy(model.state_dict())
    batches = [pairs(), pairs(3, seed=1), pairs(2, seed=2)]
    result = mf.prune(model, method, [0.5, 0.75], batches, **QUICK.get(method, {}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.apply_(model, 0.75)
    decoder, encoder = model.text_decoder.bert.encoder.layer[0], model.text_encoder.encoder.layer[0]
    assert decoder.output.dense.weight is encoder.output.dense.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "_m." in name)
