"""ONNX: what is written computes what the sparse model does; what cannot be written says so."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.formats import export

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)).eval()


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ["onnx", "onnxscript", "onnxruntime"])), reason="no onnx")
@pytest.mark.slow
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_an_onnx_file_computes_what_the_sparse_model_does(tmp_path, values):
    import onnxruntime

    model = vit()
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    folder = export(model, masks, tmp_path / "onnx", format="onnx", values=values)
    assert {"model.onnx", "config.json"} <= {path.name for path in folder.iterdir()}
    masks.apply_(model)
    pixels = torch.randn(3, 3, 16, 16)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    with torch.inference_mode():
        near = 1e-4 if values == "fp32" else 0.1
        torch.testing.assert_close(torch.from_numpy(found), model(pixels).logits, rtol=near, atol=near)


def test_without_the_package_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else whole(name))
    with pytest.raises(mf.MultiflowError, match=r"needs onnxscript, which is not installed"):
        export(vit(), None, tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ["onnx", "onnxscript", "onnxruntime"])), reason="no onnx")
def test_a_model_that_cannot_be_followed_is_one_sentence(tmp_path, tiny):
    with pytest.raises(mf.MultiflowError, match="XVLMForPretraining cannot be exported to ONNX"):
        export(mf.load_model(tiny), None, tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()
