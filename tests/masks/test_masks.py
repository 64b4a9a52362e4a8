from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

import multiflow as mf
from multiflow.base.types import Layer, Layout
from multiflow.masks import by_group, compare, total
from tests.small import ADAPTER, chain, every, two_towers


@pytest.fixture
def model():
    return two_towers()


@pytest.fixture
def masks(model):
    return mf.prune(model, "magnitude-modality", [0.5], adapter=ADAPTER).masks[0.5]


def test_is_a_mapping_in_layout_order(model, masks):
    assert list(masks) == ["text.0", "text.2", "vision.0", "vision.2", "text_out"] == list(ADAPTER.layout(model))
    assert masks["text.0"].dtype == torch.bool
    assert masks["text.0"].shape == (24, 16)
    assert masks["text.0"].device.type == "cpu"


def test_sparsity_counts_zeros(masks):
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    assert masks.sparsity == dropped / masks.layout.size
    assert masks.group_sparsities() == {"text": 0.5, "vision": 0.5, "shared": 0.5}
    assert masks.sparsities()["text.0"] == float((~masks["text.0"]).double().mean())


def test_from_tensors_round_trip_with_sizes_that_eight_does_not_divide():
    layout = Layout((Layer("a", (3, 5), "x"), Layer("b", (1, 1), "y")))
    tensors = {"a": torch.rand(3, 5) > 0.5, "b": torch.tensor([[False]])}
    masks = mf.Masks.from_tensors(layout, tensors)
    assert all(torch.equal(masks[name], tensors[name]) for name in tensors)
    assert masks.sparsity == (int((~tensors["a"]).sum()) + 1) / 16


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "layer 'a' has no mask"),
        ({"a": torch.ones(2, 2).bool(), "c": torch.ones(1, 1).bool()}, "layer 'c' is not in the layout"),
        ({"a": torch.ones(2, 2)}, r"torch.float32 \(2, 2\); expected torch.bool \(2, 2\)"),
    ],
)
def test_from_tensors_refuses_what_does_not_fit(tensors, message):
    with pytest.raises(mf.MultiflowError, match=message):
        mf.Masks.from_tensors(Layout((Layer("a", (2, 2), "x"),)), tensors)


def test_an_unknown_layer_is_a_key_error_with_a_hint(masks):
    with pytest.raises(KeyError, match="did you mean 'text.0'"):
        masks["text0"]


def test_save_and_load(masks, tmp_path):
    path = masks.save(tmp_path / "mask.safetensors")
    loaded = mf.Masks.load(path)
    assert loaded == masks
    assert loaded.layout == masks.layout
    assert loaded.settings == masks.settings
    assert loaded.weights == masks.weights
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_holds_one_bit_a_weight(tmp_path):
    model = chain(512, 512, 512)
    path = mf.prune(model, "magnitude", 0.5, adapter=every(model)).masks[0.5].save(tmp_path / "m.safetensors")
    assert path.stat().st_size < 2 * 512 * 512 / 8 + 3000


def test_a_truncated_file_is_refused(masks, tmp_path):
    path = masks.save(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(mf.MultiflowError, match="truncated"):
        mf.Masks.load(path)


@pytest.mark.parametrize("where", ["bits", "group", "settings", "hash", "kind"])
def test_an_altered_file_is_refused(masks, tmp_path, where):
    path = masks.save(tmp_path / "m.safetensors")
    data = bytearray(path.read_bytes())
    if where == "bits":
        data[-1] ^= 1
    else:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        content = header["__metadata__"]["multiflow"]
        first = json.loads(content)["weights"]["text.0"]
        changes = {"group": ('"vision"', '"viSion"'), "settings": ('"seed": 0', '"seed": 1'), "hash": (first, "0" * 16)}
        if where == "kind":
            header["text.0"]["dtype"] = "I8"
        else:
            header["__metadata__"]["multiflow"] = content.replace(*changes[where])
            assert header["__metadata__"]["multiflow"] != content
        text = json.dumps(header, separators=(",", ":")).encode()
        data = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    path.write_bytes(data)
    with pytest.raises(mf.MultiflowError, match="altered"):
        mf.Masks.load(path)


def test_no_file_and_another_safetensors_file_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(mf.MultiflowError, match="no mask file at"):
        mf.Masks.load(tmp_path / "none")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(mf.MultiflowError, match="without masks"):
        mf.Masks.load(tmp_path / "other.safetensors")


def test_a_place_that_cannot_be_written_is_one_sentence(masks, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(mf.MultiflowError, match="cannot write"):
        masks.save(tmp_path / "file" / "m.safetensors")


def test_apply_zeros_dropped_weights_and_nothing_else(model, masks):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert masks.apply_(model) is masks
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, torch.where(mask, before[f"{name}.weight"], 0.0))
        assert not torch.signbit(weight[~mask]).any()
    assert torch.equal(model.head.weight, before["head.weight"])
    assert model.vision_out.weight is model.text_out.weight


def test_apply_twice_and_more_is_no_warning(model, masks):
    masks.apply_(model)
    masks.apply_(model)


def test_apply_warns_of_other_weights_and_applies(masks):
    other = two_towers(seed=5)
    with pytest.warns(UserWarning, match="5 of 5 layers differ, first 'text.0'"):
        masks.apply_(other)
    assert not other.text[0].weight[~masks["text.0"]].any()


def test_apply_to_another_model_touches_nothing(masks):
    model = two_towers()
    model.vision[2] = torch.nn.Linear(24, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mf.MultiflowError, match=r"'vision.2' .*\(8, 24\), .*\(16, 24\)"):
        masks.apply_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(mf.MultiflowError, match="another model: it has no layer 'text.0'"):
        masks.apply_(chain(4, 4))


def test_apply_to_a_model_whose_shared_weight_came_apart(model, masks):
    model.vision_out.weight = torch.nn.Parameter(model.text_out.weight.detach().clone())
    masks.apply_(model)
    assert not model.vision_out.weight[~masks["text_out"]].any()


def test_compare_counts_agreement(model, masks):
    other = mf.prune(model, "random", 0.5, adapter=ADAPTER).masks[0.5]
    layers = compare(masks, other)
    same = sum(int((masks[name] == other[name]).sum()) for name in masks)
    both = sum(int((masks[name] & other[name]).sum()) for name in masks)
    either = sum(int((masks[name] | other[name]).sum()) for name in masks)
    everything = total(list(layers.values()))
    assert everything.agreement == same / masks.layout.size
    assert everything.overlap == both / either
    assert list(by_group(masks, other)) == ["text", "vision", "shared"]
    assert total(list(compare(masks, masks).values())).agreement == 1.0
    with pytest.raises(mf.MultiflowError, match="different layers"):
        model = chain(4, 4)
        compare(masks, mf.prune(model, "random", 0.5, adapter=every(model)).masks[0.5])


def test_settings_that_json_does_not_know_are_written_as_plain_values(tmp_path):
    model = chain(8, 4)
    result = mf.prune(model, "ria", [np.float32(0.5)], [torch.ones(2, 8)], adapter=every(model), alpha=np.float32(0.5))
    loaded = mf.Masks.load(result.masks[0.5].save(tmp_path / "m.safetensors"))
    assert loaded.settings["hyper"] == {"alpha": 0.5}
    assert json.loads((result.save(tmp_path / "run") / "result.json").read_text())["settings"]["sparsity"] == [0.5]


def test_a_newer_format_is_told_apart_from_damage(masks, tmp_path, monkeypatch):
    monkeypatch.setattr("multiflow.masks.files.FORMAT", 2)
    path = masks.save(tmp_path / "m.safetensors")
    monkeypatch.setattr("multiflow.masks.files.FORMAT", 1)
    with pytest.raises(mf.MultiflowError, match="format 2, .* format 1; update multiflow"):
        mf.Masks.load(path)
