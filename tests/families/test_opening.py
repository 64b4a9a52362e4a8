from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.utils import logging

from multiflow.base.errors import MultiflowError
from multiflow.cli import main
from multiflow.families import opening
from multiflow.families.opening import (
    bundled_models,
    find_device,
    find_dtype,
    find_model,
    load_model,
    model_files,
    open_model,
    pixel_statistics,
    quiet_transformers,
)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name, said in {
        "cuda:99": "device 'cuda:99' is not on this machine, which has: cpu",
        "meta": "device 'meta' is not on this machine",
        "cpx": "unknown device 'cpx'; known: auto, cpu, cuda, cuda:N, mps; did you mean 'cpu'?",
    }.items():
        with pytest.raises(MultiflowError) as caught:
            find_device(name)
        assert str(caught.value).startswith(said)


def test_dtypes() -> None:
    assert find_dtype("auto") is None
    assert find_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(MultiflowError, match="unknown dtype 'bfloat'; known: .*; did you mean 'bfloat16'?"):
        find_dtype("bfloat")


def test_models_are_paths_bundled_names_or_hub_ids(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "bundled_models", lambda: {"xvlm-shapes": tiny})
    monkeypatch.chdir(tmp_path)
    assert find_model("xvlm-shapes") == str(tiny)
    assert find_model("facebook/dino-vitb16") == "facebook/dino-vitb16"
    assert find_model("someone/xvlm-shape") == "someone/xvlm-shape"
    assert find_model(str(tiny)) == str(tiny)
    with pytest.raises(MultiflowError, match="unknown model 'xvlm-shaps'; known: xvlm-shapes, .* did you mean"):
        find_model("xvlm-shaps")
    (tmp_path / "xvlm-shapes").mkdir()
    assert find_model("xvlm-shapes") == "xvlm-shapes"  # a folder of one's own comes first


def test_every_bundled_model_is_a_folder_with_a_config() -> None:
    assert all((folder / "config.json").is_file() for folder in bundled_models().values())


def test_a_model_comes_in_the_dtype_that_is_asked_for(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert next(open_model(str(tiny), None, None).parameters()).dtype == torch.float32
    assert next(open_model(str(tiny), None, None, "cpu", "bfloat16").parameters()).dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")  # nothing of transformers on the screen


def test_files_beside_a_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("tokenizer.json", "vocab.txt")
    assert model_files(str(tiny), names) == [tiny / "tokenizer.json"]
    assert model_files(str(tiny / "model.safetensors"), names) == []
    fetched = tmp_path / "tokenizer.json"

    def download(source: str, name: str) -> str:
        if name == "vocab.txt":
            raise FileNotFoundError(name)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert model_files("someone/model", names) == [fetched]


def test_pixel_statistics(tmp_path: Path) -> None:
    assert pixel_statistics(str(tmp_path)) == {}
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    assert pixel_statistics(str(tmp_path)) == {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    (tmp_path / "preprocessor_config.json").write_text('{"size": 3}')
    assert pixel_statistics(str(tmp_path)) == {}


def test_transformers_is_as_loud_as_before() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_errors_name_what_is_wrong_as_an_argument_and_as_an_option(tiny: Path) -> None:
    weights = str(tiny / "model.safetensors")
    for source, given, said in (
        (weights, {}, "pass family= one of"),
        (str(tiny), {"config": "base"}, "config= is for files of an original release"),
        (str(tiny), {"family": "blip"}, "leave family= out"),
        (weights, {"family": "xvlm"}, "pass config= with the sizes"),
    ):
        with pytest.raises(MultiflowError) as caught:
            load_model(source, **given)
        assert said in str(caught.value)
        assert re.sub(r"(\w+)=", r"--\1", said) in caught.value.worded("--{}".format)


OWN_CODE = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

print("this code ran")


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.post_init()
"""


def test_code_that_comes_with_a_model_runs_only_where_it_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(OWN_CODE)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"layers.0.weight": torch.ones(4, 4), "layers.0.bias": torch.zeros(4)}, folder / "model.safetensors")
    with pytest.raises(MultiflowError, match=r"modeling_own.py.* trust_remote_code=True"):
        load_model(folder)
    assert main(["show", str(folder)]) == 2
    said = capsys.readouterr()
    assert "--trust-remote-code" in said.err
    assert "this code ran" not in said.out
    assert type(load_model(folder, trust_remote_code=True)).__name__ == "OwnModel"
    assert "this code ran" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "torchao"])
def test_a_quantised_folder_is_named_rather_than_the_package_that_reads_it(method, vlm, tmp_path):
    folder = shutil.copytree(vlm("clip"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    how = {"quant_method": method, "bits": 4, "load_in_4bit": True, "quant_type": "int4_weight_only"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    with pytest.raises(MultiflowError, match=rf"is quantised \({method}\).*give the model that it was made of"):
        load_model(folder)
