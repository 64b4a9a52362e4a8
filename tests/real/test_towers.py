"""Towers out of other formats: a small ViT that is written as an ONNX file is the same after conversion."""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from benchmarks.real.towers import convert_minilm, convert_vit, load_minilm, load_vit, read_vit
from multiflow.base.errors import MultiflowError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A Dinov2Model of three layers, and what its folder holds."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=1, mlp_ratio=2, image_size=28, patch_size=7
    )
    model = Dinov2Model(config).eval()
    place = tmp_path_factory.mktemp("vit")
    model.save_pretrained(place)
    return model, load_file(place / "model.safetensors")


def as_onnx(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write tensors as an export has them: matrices transposed and nameless, met by the bias of their layer."""
    nodes, values = [], []

    def value(name: str, tensor: torch.Tensor) -> str:
        values.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))
        return name

    for number, (name, tensor) in enumerate(tensors.items()):
        if name.endswith("position_embeddings"):
            value("onnx::Concat_1", tensor[:, :1])
            value("onnx::Reshape_2", tensor[:, 1:])
        elif tensor.ndim == 2 and name.endswith(".weight"):
            matrix = value(f"onnx::MatMul_{number}", tensor.T)
            bias = "backbone." + name.removesuffix("weight") + "bias"
            nodes.append(onnx.helper.make_node("MatMul", [f"in{number}", matrix], [f"product{number}"]))
            nodes.append(onnx.helper.make_node("Add", [bias, f"product{number}"], [f"out{number}"]))
        elif "mask_token" not in name:
            value(f"backbone.{name}", tensor)
    value("decoder.final.weight", torch.ones(2, 2))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "vit", [], [], values)), str(path))
    return path


@pytest.mark.parametrize("layers", [None, 2])
def test_a_vit_is_the_same_after_conversion(layers, small, tmp_path):
    model, tensors = small
    back = load_vit(convert_vit(as_onnx(tmp_path / "vit.onnx", tensors), tmp_path / "out", layers))
    assert back.config.num_hidden_layers == (layers or 3)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth = model(pixel_values=pixels, output_hidden_states=True).hidden_states[layers or 3]
        found = back(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, truth)


def test_a_file_that_is_no_vit_is_refused(small, tmp_path):
    _, tensors = small
    (tmp_path / "text.onnx").write_text("no model at all")
    with pytest.raises(MultiflowError, match=r"text\.onnx"):
        read_vit(tmp_path / "text.onnx")
    less = {name: of for name, of in tensors.items() if not name.endswith("1.mlp.fc2.weight")}
    with pytest.raises(MultiflowError, match=r"mlp\.fc2"):
        convert_vit(as_onnx(tmp_path / "less.onnx", less), tmp_path / "less")
    none = {name: of for name, of in tensors.items() if "position" not in name}
    with pytest.raises(MultiflowError, match="positions"):
        read_vit(as_onnx(tmp_path / "none.onnx", none))


def test_a_sentence_encoder_comes_out_of_its_zip_by_name_alone(tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=12)
    BertModel(config).save_pretrained(tmp_path / "made")
    (tmp_path / "made" / "tokenizer.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for file in (tmp_path / "made").iterdir():
            archive.write(file, file.name)
        archive.writestr("../evil.py", "raise SystemExit(7)")
        archive.writestr("1_Pooling/config.json", "{}")
    folder = convert_minilm(tmp_path / "model.zip", tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert load_minilm(folder).config.hidden_size == 8
    assert not (tmp_path / "evil.py").exists()


def test_a_zip_that_lacks_a_file_or_is_none_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(MultiflowError, match=r"model\.safetensors"):
        convert_minilm(tmp_path / "empty.zip", tmp_path / "out")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(MultiflowError, match=r"text\.zip"):
        convert_minilm(tmp_path / "text.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
