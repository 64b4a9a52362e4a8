from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from multiflow.base.errors import MultiflowError
from multiflow.families import original_names
from multiflow.families.opening import load_model
from multiflow.families.vit.adapter import dinov2_key, vit_key
from tests import golden_data

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"image_size": 32, "patch_size": 16}


@torch.no_grad()
def test_dino_matches_the_golden_logits():
    logits = golden_data.model("dino")(golden_data.batches("dino")[0]["pixel_values"]).logits
    expected = golden_data.tensors("dino", "expected")["logits"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_original_names_are_those_of_the_golden_list():
    model = golden_data.model("dino")
    weights = golden_data.tensors("dino", "weights")
    names = original_names(model)
    assert set(names.values()) == set(golden_data.prunable("dino"))
    for layer, name in names.items():
        assert torch.equal(model.get_submodule(layer).weight, weights[name])


def test_names_of_today_are_read_too(tmp_path):
    model = ViTForImageClassification(ViTConfig(**SIZES, num_labels=3))
    torch.save(model.state_dict(), tmp_path / "today.pth")
    loaded = load_model(tmp_path / "today.pth", family="dino", config=SIZES)
    assert loaded.config.num_labels == 3  # read off the classifier
    for (_, before), (_, after) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(before, after)


def test_a_pooler_in_the_file_is_not_needed(tmp_path):
    model = ViTForImageClassification(ViTConfig(**SIZES))
    state = model.state_dict() | {"vit.pooler.dense.weight": torch.zeros(24, 24)}
    torch.save(state, tmp_path / "pooler.pth")
    assert not load_model(tmp_path / "pooler.pth", family="dino", config=SIZES).training


def test_both_kinds_of_dropout_are_set():
    path = golden_data.FOLDER / "dino" / "weights.safetensors"
    config = load_model(path, "dino", golden_data.config("dino") | {"dropout": 0.25}).config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.25)


def test_an_unknown_size_is_named():
    path = golden_data.FOLDER / "dino" / "weights.safetensors"
    with pytest.raises(MultiflowError, match=r"unknown size 'hiden_size'.*did you mean 'hidden_size'"):
        load_model(path, "dino", {"hiden_size": 64})


def test_a_name_in_the_old_form_stays():
    for key in golden_data.tensors("dino", "weights"):
        assert vit_key(key) == key


def test_dinov2_keeps_the_names_of_its_mlp():
    model = Dinov2ForImageClassification(Dinov2Config(**(SIZES | {"num_hidden_layers": 1})))
    prefix = "dinov2.encoder.layer.0."
    parts = ["query", "key", "value"]
    assert sorted(original_names(model).values()) == sorted(
        [f"{prefix}attention.attention.{part}.weight" for part in parts]
        + [f"{prefix}{part}.weight" for part in ("attention.output.dense", "mlp.fc1", "mlp.fc2")]
    )
    assert dinov2_key("dinov2.encoder.layer.0.norm1.weight") == "dinov2.encoder.layer.0.norm1.weight"
