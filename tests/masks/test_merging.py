"""Adapters of peft on sparse models: zeros stay zeros in training, and in merging however late."""

from __future__ import annotations

import copy
import gc
import io
import warnings

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules import module as torch_module

import multiflow as mf
from tests.small import ADAPTER, towers_batches, two_towers

LAYERS = ["0", "2"]  # of both towers
CONFIGS = {
    "lora": LoraConfig(target_modules=LAYERS, r=4),
    "rslora": LoraConfig(target_modules=LAYERS, r=4, use_rslora=True, lora_bias=True),
    "dora": LoraConfig(target_modules=LAYERS, r=4, use_dora=True, lora_dropout=0.2),
    "loha": LoHaConfig(target_modules=LAYERS, r=4),
    "ia3": IA3Config(target_modules=LAYERS, feedforward_modules=[]),
    "whole": LoraConfig(target_modules=["0"], r=4, modules_to_save=["vision"]),
}


def adapted(config):
    model = two_towers()
    masks = mf.prune(model, "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    return masks, get_peft_model(model, copy.deepcopy(config))


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**towers_batches(4)[0]).square().mean().backward()
        optimizer.step()


def outputs(model):
    return model.eval()(**towers_batches(4)[0]).detach()


def is_sparse(masks, model):
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in masks)
    return masks.is_applied(model) and zeros == sum(map(masks.dropped, masks))


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_trained_is_what_is_merged_and_zeros_stay(kind):
    masks, model = adapted(CONFIGS[kind])
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with mf.keep_sparse(model, masks) as check:
        train(model)
        check()
        moved = [not torch.equal(before[name], p) for name, p in model.named_parameters() if name in before]
        assert moved
        assert sum(moved) >= len(moved) / 2
        seen = outputs(model)
        merged = model.merge_and_unload()
        check()
        torch.testing.assert_close(outputs(merged), seen)
    assert is_sparse(masks, merged)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "whole"])
@pytest.mark.parametrize("safe", [False, True])
def test_merging_after_the_block_keeps_zeros(kind, safe):
    masks, model = adapted(CONFIGS[kind])
    with mf.keep_sparse(model, masks):
        train(model)
    assert is_sparse(masks, model.merge_and_unload(safe_merge=safe))


def test_merging_and_taking_apart_on_the_way():
    masks, model = adapted(CONFIGS["lora"])
    with mf.keep_sparse(model, masks) as check:
        train(model)
        seen = outputs(model)
        model.merge_adapter()
        check()
        torch.testing.assert_close(outputs(model), seen)
        model.unmerge_adapter()
        check()
        torch.testing.assert_close(outputs(model), seen)
        train(model.train(), 1)
        check()


def test_factors_are_dense_and_layers_that_have_none_are_kept_sparse():
    masks, model = adapted(CONFIGS["lora"])
    assert set(masks) == {"text.0", "text.2", "vision.0", "vision.2", "text_out"}
    with mf.keep_sparse(model, masks):
        model.get_base_model().text_out.weight.requires_grad_(True)
        train(model)
        assert masks.is_applied(model)
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(factors) == 8
    assert all(p.count_nonzero() == p.numel() for p in factors)


def test_copies_made_inside_the_block_merge_with_zeros():
    masks, model = adapted(CONFIGS["lora"])
    with mf.keep_sparse(model, masks):
        train(model)
        twin = copy.deepcopy(model)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        train(model)
    for other in (twin, loaded):
        assert is_sparse(masks, other.merge_and_unload())


def test_nothing_is_left_where_nothing_is_to_be_merged():
    masks, model = adapted(CONFIGS["lora"])
    with mf.keep_sparse(model, masks):
        train(model)
        merged = model.merge_and_unload()
    gc.collect()  # models of other tests
    nn.Sequential(nn.Identity())
    assert not torch_module._global_module_registration_hooks  # torch's own table
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in merged.modules())
    masks, model = adapted(CONFIGS["lora"])
    with mf.keep_sparse(model, masks):
        pass
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert not any("get_delta_weight" in vars(m) for m in model.modules())
    model.merge_and_unload()
    assert not torch_module._global_module_registration_hooks  # torch's own table


def test_masks_are_applied_to_a_model_with_adapters_by_the_names_from_before():
    masks, model = adapted(CONFIGS["whole"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.apply_(model)
    assert masks.is_applied(model)
    assert not model.get_base_model().vision.modules_to_save["default"][0].weight[~masks["vision.0"]].any()


def test_another_model_inside_adapters_is_an_error_that_names_the_layer():
    masks, _ = adapted(CONFIGS["lora"])
    other = get_peft_model(nn.Sequential(nn.Linear(16, 24)), LoraConfig(target_modules=["0"], r=2))
    with (
        pytest.raises(mf.MultiflowError, match="those of another model: it has no layer 'text.0'"),
        mf.keep_sparse(other, masks),
    ):
        pass
