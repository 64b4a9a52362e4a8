from __future__ import annotations

import pytest
import torch

import multiflow as mf
from tests import golden_data
from tests.small import chain


def test_xvlm_groups_follow_fusion_layer():
    model = golden_data.model("xvlm")
    layout = mf.adapter_for(model).layout(model)
    assert {f"{name}.weight": layer.shape for name, layer in layout.items()} == golden_data.prunable("xvlm")
    numbers = {group: {layer.name.split(".")[4] for layer in layers} for group, layers in layout.groups.items()}
    assert numbers["text"] == {"0", "1"}
    assert numbers["fusion"] == {"2", "3"}


def test_xvlm_streams():
    model = golden_data.model("xvlm")
    layout = mf.adapter_for(model).layout(model)
    fusion = "text_encoder.bert.encoder.layer.2"
    assert layout[f"{fusion}.crossattention.self.key"].stream == "image"
    assert layout[f"{fusion}.crossattention.self.value"].stream == "image"
    assert layout[f"{fusion}.crossattention.self.query"].stream == "text"
    assert layout[f"{fusion}.crossattention.output.dense"].stream == "text"
    assert layout["vision_encoder.encoder.layers.0.mlp.fc1"].stream is None


def test_vit_has_one_group():
    model = golden_data.model("dino")
    layout = mf.adapter_for(model).layout(model)
    assert list(layout.groups) == ["vision"]
    assert {mf.original_names(model)[name] for name in layout} == set(golden_data.prunable("dino"))


def test_losses_of_the_families():
    model, batch = golden_data.model("xvlm"), golden_data.batches("xvlm")[0]
    loss = mf.adapter_for(model).loss
    expected = golden_data.tensors("xvlm", "expected")
    general = sum(expected[f"loss_{name}"] for name in ("itc", "itm", "mlm"))
    region = sum(expected[f"region_loss_{name}"] for name in ("itc", "itm", "mlm"))
    torch.testing.assert_close(loss(model, batch), general, rtol=1e-4, atol=0)
    both = batch | {"region": golden_data.region_batch()}
    torch.testing.assert_close(loss(model, both), (general + region) / 2, rtol=1e-4, atol=0)

    model, batch = golden_data.model("dino"), golden_data.batches("dino")[0]
    logits = golden_data.tensors("dino", "expected")["logits"]
    expected_loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    torch.testing.assert_close(mf.adapter_for(model).loss(model, batch), expected_loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
def test_a_batch_without_a_key_is_named(key):
    model, batch = golden_data.model("xvlm"), golden_data.batches("xvlm")[0]
    del batch[key]
    with pytest.raises(mf.MultiflowError, match=f"has no '{key}'; it has .*needs pixel_values"):
        mf.prune(model, "multiflow", 0.5, [batch])


def test_pixels_take_the_dtype_of_the_model():
    for family in ("xvlm", "dino"):
        model = golden_data.model(family).bfloat16()
        result = mf.prune(model, "multiflow", 0.5, golden_data.batches(family)[:2])
        assert abs(result.masks[0.5].sparsity - 0.5) < 1e-4


def test_an_unknown_family_says_how_to_go_on():
    with pytest.raises(mf.MultiflowError, match=r"no adapter for a Sequential .*known: .*xvlm.*adapter=mf.Adapter"):
        mf.adapter_for(chain(2, 2))
