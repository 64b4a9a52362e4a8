from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.families.blip.models import BlipForPretraining, BlipPretrainingConfig
from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining
from tests import golden_data

WIDTH, MLP = 768, 3072
SQUARE, UP, DOWN = (WIDTH, WIDTH), (MLP, WIDTH), (WIDTH, MLP)
PARTS = {  # of a transformer layer: prefix -> name in it -> shape
    "vision_encoder.encoder.layers": {
        **{f"self_attn.{part}_proj": SQUARE for part in "qkv"}, "self_attn.out_proj": SQUARE,
        "mlp.fc1": UP, "mlp.fc2": DOWN,
    },
    "visual_encoder.blocks": {
        "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": SQUARE, "mlp.fc1": UP, "mlp.fc2": DOWN,
    },
    "attention": {**{f"self.{part}": SQUARE for part in ("query", "key", "value")}, "output.dense": SQUARE},
    "mlp": {"intermediate.dense": UP, "output.dense": DOWN},
}  # fmt: skip


def manifest(family: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Group -> name in the release -> shape, of a base model's prunable weights, from the page of facts alone."""
    bert = {f"attention.{name}": shape for name, shape in PARTS["attention"].items()} | PARTS["mlp"]
    cross = {f"crossattention.{name}": shape for name, shape in PARTS["attention"].items()}
    if family == "xvlm":
        vision, text = "vision_encoder.encoder.layers", "text_encoder.bert.encoder.layer"
        listed = [("vision", vision, range(12), PARTS[vision]), ("text", text, range(6), bert)]
        listed += [("fusion", text, range(6, 12), bert | cross)]
    else:
        vision, text = "visual_encoder.blocks", "text_encoder.encoder.layer"
        own = {name: shape for name, shape in bert.items() if name.startswith("attention.")}
        listed = [("vision", vision, range(12), PARTS[vision]), ("text", text, range(12), bert | cross)]
        listed += [("text", "text_decoder.bert.encoder.layer", range(12), own)]
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for group, prefix, numbers, parts in listed:
        of = {f"{prefix}.{number}.{name}.weight": shape for number in numbers for name, shape in parts.items()}
        found.setdefault(group, {}).update(of)
    return found


@pytest.mark.parametrize(
    ("family", "build", "sizes"),
    [
        (
            "xvlm",
            lambda: XVLMForPretraining(XVLMConfig()),
            {"vision": 84_934_656, "text": 42_467_328, "fusion": 56_623_104},
        ),
        ("blip", lambda: BlipForPretraining(BlipPretrainingConfig()), {"vision": 84_934_656, "text": 141_557_760}),
    ],
)
def test_the_layout_of_the_base_models_at_full_size(family, build, sizes):
    with torch.device("meta"):
        model = build()
    layout, names = mf.adapter_for(model).layout(model), mf.original_names(model)
    found = {group: {names[x.name]: x.shape for x in layers} for group, layers in layout.groups.items()}
    assert found == manifest(family)
    assert {group: sum(x.size for x in layers) for group, layers in layout.groups.items()} == sizes
    assert (len(layout), layout.size) == {"xvlm": (168, 184_025_088), "blip": (216, 226_492_416)}[family]
    assert all(parameter.is_meta for parameter in model.parameters())


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
