"""CoreML: the package holds every kept weight, read back from it; only macOS can run it."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.formats import export

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
INSTALLED = pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="no coremltools")


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    labels = {0: "circle", 1: "square", 2: "star"}
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, id2label=labels)).eval()


@INSTALLED
@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_a_package_holds_every_kept_weight_however_small(tmp_path, values):
    from multiflow.formats.coreml import COREML_VALUES, stored_weights

    model = vit()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 0.02] *= 0.01  # many are kept that are below the tools' own threshold
    masks = mf.prune(model, "magnitude-layer", 0.3).masks[0.3]
    folder = export(model, masks, tmp_path / "core", format="coreml", values=values)
    assert {"model.mlpackage", "config.json", "labels.txt"} <= {path.name for path in folder.iterdir()}
    assert (folder / "labels.txt").read_text().split() == ["circle", "square", "star"]
    masks.apply_(model)
    stored = stored_weights(folder / "model.mlpackage")
    tiny = 0
    for layer in masks.layout.layers:
        weight = model.get_submodule(layer.paths[0]).weight.detach()
        (name,) = [key for key in stored if key.endswith(f"{layer.paths[0]}.weight".replace(".", "_"))]
        assert torch.equal(torch.from_numpy(stored[name].reshape(weight.shape)), weight.to(COREML_VALUES[values]))
        tiny += int(((weight != 0) & (weight.abs() < 1e-3)).sum())
    assert tiny > 0


@INSTALLED
@pytest.mark.slow
def test_a_model_that_cannot_be_followed_is_one_sentence(tmp_path, tiny):
    with pytest.raises(mf.MultiflowError, match="XVLMForPretraining cannot be converted to CoreML"):
        export(mf.load_model(tiny), None, tmp_path / "core", format="coreml")
    assert not (tmp_path / "core").exists()


@INSTALLED
@pytest.mark.slow
def test_kept_weights_that_float16_would_lose_are_refused(tmp_path):
    model = vit()
    masks = mf.prune(model, "magnitude-layer", 0.3).masks[0.3]
    layer = masks.layout.layers[0]
    kept = masks[layer.name].nonzero()[0]
    with torch.no_grad():
        model.get_submodule(layer.paths[0]).weight[tuple(kept)] = 1e-9
    with pytest.raises(mf.MultiflowError, match="1 kept weights .* zero in float16; give --values fp32"):
        export(model, masks, tmp_path / "core", format="coreml", values="fp16")


@INSTALLED
def test_values_that_the_format_has_not_are_refused(tmp_path):
    with pytest.raises(mf.MultiflowError, match="'int8'; give fp32 or fp16"):
        export(vit(), None, tmp_path / "core", format="coreml", values="int8")
    assert not (tmp_path / "core").exists()


def test_without_the_package_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(mf.MultiflowError, match="needs coremltools, which is not installed"):
        export(vit(), None, tmp_path / "core", format="coreml")
    assert not (tmp_path / "core").exists()
