from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from multiflow.base.errors import MultiflowError
from multiflow.families.original import read_config, read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(())}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "epoch": 3},
        {"state_dict": {"model": STATE}, "config": {"lr": 1e-4}},
        {"model": {f"module.{key}": value for key, value in STATE.items()}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_found_however_it_is_wrapped(tmp_path, content, legacy):
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = read_tensors(path)
    assert list(read) == list(STATE)
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert torch.equal(read_tensors(tmp_path / "model.safetensors")["a.weight"], STATE["a.weight"])


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(MultiflowError, match=r"wants to run argparse\.Namespace"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_files(tmp_path, name, keep):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(STATE | {"c": torch.zeros(500)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MultiflowError, match=f"'{path}' is not a complete (PyTorch|safetensors) file.*; copy it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "weights": STATE}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        (STATE | {"lr": 0.1}, "'lr' is a float; a state dict holds tensors only"),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(MultiflowError, match=message):
        read_tensors(tmp_path / "model.pth")


def test_configs_are_mappings_files_or_presets(tmp_path):
    (tmp_path / "a.json").write_text('{"width": 3}')
    (tmp_path / "a.yaml").write_text("width: 3")
    presets = {"base": {}, "small": {"width": 3}}
    for config in ({"width": 3}, tmp_path / "a.json", str(tmp_path / "a.yaml"), "small"):
        assert read_config(config, presets) == {"width": 3}
    assert read_config(None, presets) == {}


def test_a_config_may_name_others(tmp_path, monkeypatch):
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    (tmp_path / "configs" / "text.json").write_text('{"layers": 2}')
    (tmp_path / "configs" / "deep" / "model.yaml").write_text("text_config: configs/text.json\nother: text.json")
    read = read_config(tmp_path / "configs" / "deep" / "model.yaml", {})
    assert read == {"text_config": {"layers": 2}, "other": "text.json"}
    monkeypatch.chdir(tmp_path)
    given = {"text_config": "configs/text.json"}
    assert read_config(given, {}) == {"text_config": {"layers": 2}}
    assert given == {"text_config": "configs/text.json"}


def test_configs_that_cannot_be_read(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([1]))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "lost.yaml").write_text("text_config: nowhere.json")
    for config, message in [
        (tmp_path / "list.json", "holds a list; it must map names to sizes"),
        (tmp_path / "broken.json", "is not valid JSON"),
        (tmp_path / "broken.yaml", "is no YAML"),
        (tmp_path / "none.json", "cannot read '.*none.json': No such file or directory"),
        (tmp_path / "lost.yaml", "cannot read '.*nowhere.json'"),
        ("bsae", "unknown config 'bsae'; known: base, a JSON or YAML file; did you mean 'base'"),
    ]:
        with pytest.raises(MultiflowError, match=message):
            read_config(config, {"base": {}})
