"""Compact models compute what the sparse ones do, are ordinary where their config can say so, and can be read again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    ViTConfig,
    ViTForImageClassification,
)

import multiflow as mf
from multiflow.base.structure import STRUCTURE_FILE, Structure, structure_of
from multiflow.formats import export
from tests.conftest import Run
from tests.small import ADAPTER, towers_batches, two_towers

NEAR = {"rtol": 1e-4, "atol": 1e-5}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)).eval()


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def sparse(model: nn.Module, masks: mf.Masks) -> nn.Module:
    zeroed = copy.deepcopy(model)
    masks.apply_(zeroed)
    return zeroed


def outputs(model: nn.Module, **batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out = model(**(batch or {"pixel_values": pixels()}))
    return getattr(out, "logits", out)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("units", ["mlp", "heads", "all"])
def test_outputs_are_equal_and_the_model_is_smaller(units):
    model = vit()
    masks = mf.prune_units(model, "magnitude", 0.5, units=units).masks[0.5]
    before = count(model)
    small = mf.compact(model, masks)
    torch.testing.assert_close(outputs(small), outputs(sparse(model, masks)), **NEAR)
    gone = sum(map(masks.dropped, masks))
    assert before - count(small) >= gone  # with their biases
    assert count(model) == before


def test_a_config_that_can_say_the_sizes_says_them(tmp_path):
    model = vit()
    small = mf.compact(model, mf.prune_units(model, "magnitude", 0.5).masks[0.5])
    assert (small.config.intermediate_size, model.config.intermediate_size) == (12, 24)
    assert structure_of(small) is None
    small.save_pretrained(tmp_path)
    again = ViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(again), outputs(small))


@pytest.mark.parametrize("units", ["heads", "all"])
@pytest.mark.parametrize("format", ["folder", "packed"])
def test_a_config_that_cannot_has_a_file_beside_it(tmp_path, units, format):
    model = vit()
    masks = mf.prune_units(model, "magnitude", 0.5, units=units, allocation="global").masks[0.5]
    folder = export(model, masks, tmp_path / "small", format=format, values="fp32", compact=True)
    assert (folder / STRUCTURE_FILE).is_file()
    again = mf.load_model(folder)
    assert type(again) is ViTForImageClassification
    small = mf.compact(model, masks)
    assert torch.equal(outputs(again), outputs(small))
    assert structure_of(again) == structure_of(small)
    assert mf.prune(again, "magnitude", 0.5).masks[0.5].sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("format", ["folder", "packed"])
def test_conv1d_loses_neurons_and_heads(tmp_path, format):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=20, bos_token_id=1, eos_token_id=2)).eval()
    adapter, batch = mf.Adapter(groups={"text": r"\.h\."}), {"input_ids": torch.arange(12).view(2, 6)}
    result = mf.prune_units(model, "multiflow", 0.5, [batch] * 2, units="all", adapter=adapter)
    masks, weights = result.masks[0.5], result.weights[0.5]
    how = {"format": format, "values": "fp32", "compact": True, "adapter": adapter}
    small = mf.load_model(export(model, masks, tmp_path / "small", weights=weights, **how))
    assert (small.transformer.h[0].mlp.c_fc.nf, small.transformer.h[0].attn.num_heads) == (12, 2)
    zeroed = copy.deepcopy(model)
    result.apply_(zeroed, 0.5)
    torch.testing.assert_close(outputs(small, **batch), outputs(zeroed, **batch), **NEAR)
    assert count(small) < count(model) - sum(map(masks.dropped, masks)) + 1


def test_what_an_unstructured_mask_has_killed_is_removed_exactly():
    model = vit()
    layout = mf.adapter_for(model).layout(model)
    tensors = {
        name: torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) > 0.5
        for name, layer in layout.items()
    }
    tensors["vit.layers.0.mlp.fc2"][:, :5] = False
    tensors["vit.layers.1.mlp.fc2"][:, 3] = False
    masks = mf.Masks.from_tensors(layout, tensors)
    small = mf.compact(model, masks)
    modules = dict(small.named_modules())
    assert [modules[f"vit.layers.{n}.mlp.fc1"].out_features for n in (0, 1)] == [19, 23]
    torch.testing.assert_close(outputs(small), outputs(sparse(model, masks)), **NEAR)


def test_one_unit_of_each_stays():
    model = vit()
    layout = mf.adapter_for(model).layout(model)
    masks = mf.Masks.from_tensors(layout, {n: torch.zeros(x.shape, dtype=torch.bool) for n, x in layout.items()})
    small = mf.compact(model, masks)
    assert {m.out_features for n, m in small.named_modules() if n.endswith("fc1")} == {1}
    torch.testing.assert_close(outputs(small), outputs(sparse(model, masks)), **NEAR)


@pytest.mark.parametrize("family", ["tiny", "tiny_blip"])
@pytest.mark.filterwarnings("ignore:dead heads of BlipAttention stay")
def test_models_of_the_families(family, request, tmp_path):
    model = mf.load_model(request.getfixturevalue(family))
    masks = mf.prune_units(model, "magnitude", 0.5).masks[0.5]
    small = mf.compact(model, masks)
    assert structure_of(small) is None  # one share in every MLP: the config can say it
    assert small.config.vision["mlp"] == model.config.vision["mlp"] // 2
    small.save_pretrained(tmp_path / "half")
    again = mf.load_model(tmp_path / "half")
    task = mf.task_model(again, "captioning")
    assert task.config.text["mlp"] == model.config.text["mlp"] // 2
    heads = mf.compact(model, mf.prune_units(model, "magnitude", 0.5, units="heads").masks[0.5])
    assert count(heads) < count(model)


def test_heads_of_an_attention_that_cannot_do_with_fewer_stay(tiny_blip):
    model = mf.load_model(tiny_blip)
    masks = mf.prune_units(model, "magnitude", 0.5, units="heads").masks[0.5]
    with pytest.warns(UserWarning, match="dead heads of BlipAttention stay"):
        small = mf.compact(model, masks)
    assert small.vision_model.encoder.layers[0].self_attn.num_heads == 2
    assert small.text_encoder.encoder.layer[0].attention.self.num_attention_heads == 1


def test_heads_that_share_keys_and_values(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, vocab_size=20, max_position_embeddings=16, num_key_value_heads=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    adapter = mf.Adapter(groups={"text": r"layers\."})
    masks = mf.prune_units(model, "magnitude", 0.5, units="all", adapter=adapter).masks[0.5]
    batch = {"input_ids": torch.randint(0, 20, (2, 7))}
    small = mf.compact(model, masks, adapter=adapter, batch=batch)
    assert small.model.layers[0].self_attn.k_proj.out_features == 4
    torch.testing.assert_close(outputs(small, **batch), outputs(sparse(model, masks), **batch), **NEAR)
    again = mf.load_model(export(small, None, tmp_path / "small", format="folder"))
    assert torch.equal(outputs(again, **batch), outputs(small, **batch))


def test_a_module_of_ones_own():
    model = two_towers()
    masks = mf.prune_units(model, "magnitude", 0.25, adapter=ADAPTER).masks[0.25]
    batch = towers_batches(3)[0]
    small = mf.compact(model, masks, adapter=ADAPTER, batch=batch)
    assert small.text[0].out_features == 18
    assert small.vision_out.weight is small.text_out.weight
    torch.testing.assert_close(outputs(small, **batch), outputs(sparse(model, masks), **batch), **NEAR)


def test_it_is_pruned_further_and_trained(tmp_path):
    small = mf.compact(vit(), mf.prune_units(vit(), "magnitude", 0.5).masks[0.5])
    masks = mf.prune(small, "magnitude", 0.5).masks[0.5]
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    with mf.keep_sparse(small, masks, optimizer):
        small(pixels()).logits.square().sum().backward()
        optimizer.step()
    assert masks.is_applied(small)


def test_damaged_structures_are_noticed(tmp_path):
    model = vit()
    masks = mf.prune_units(model, "magnitude", 0.5, units="heads").masks[0.5]
    folder = export(model, masks, tmp_path / "small", format="folder", compact=True)
    path = folder / STRUCTURE_FILE
    text = path.read_text()
    path.write_text(text.replace(": 2", ": 3", 1))
    with pytest.raises(mf.MultiflowError, match=r"structure.json"):
        mf.load_model(folder)
    for sizes, attributes, said in [
        ({"no.such": (1, 1)}, {}, "no.such"),
        ({"vit.layers.0.mlp.fc1": (999, 16)}, {}, "999 x 16"),
        ({"vit.layers.0.mlp.fc1": (0, 16)}, {}, "0 x 16"),
        ({}, {"vit": {"no_heads": 1}}, "no_heads"),
    ]:
        Structure(sizes, attributes).write(folder)
        with pytest.raises(mf.MultiflowError, match=said):
            mf.load_model(folder)


def test_masks_of_another_model_are_refused():
    masks = mf.prune_units(vit(), "magnitude", 0.5).masks[0.5]
    other = ViTForImageClassification(ViTConfig(**SIZES | {"intermediate_size": 32}, image_size=16, patch_size=8))
    with pytest.raises(mf.MultiflowError, match="another model"):
        mf.compact(other, masks)
    with pytest.raises(mf.MultiflowError, match="does not run on the batch"):
        mf.compact(vit(), masks, batch={"pixel_values": torch.ones(1, 3, 5, 5)})


def test_the_command_line(run: Run, tiny: Path):
    words = ("shrink", tiny, "--method", "magnitude", "--share", 0.5, "--out", "half")
    ran = run(*words)
    assert ran.code == 0
    assert "its config says so" in ran.out
    half = mf.load_model("half/model")
    assert half.config.vision["mlp"] == 16
    assert json.loads(Path("half/units/result.json").read_text())["settings"]["pattern"] == "units: mlp"
    assert "already holds" in run(*words).error
    assert "no neuron" in run(*words[:4], "--share", 0.999, "--out", "other").error
    assert not Path("other").exists()
    mask = "half/units/mask-0.5.safetensors"
    ran = run("export", tiny, "--mask", mask, "--compact", "--format", "folder", "--out", "compact")
    assert ran.code == 0
    assert mf.load_model("compact").config.vision["mlp"] == 16
    assert run("apply", tiny, mask, "--out", "zeros").code == 0
