"""Bad input of `multiflow prune`: refused in one sentence with nothing left on the disk, or skipped and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from multiflow.families.opening import load_model
from tests.cli.conftest import Run, files


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--method", "wandaa"], "unknown pruner 'wandaa'; known: "),
        (["--method", "wandaa"], "did you mean 'wanda'?"),
        (["--sparsity", "63"], "did you mean 0.63?"),
        (["--sparsity", "1"], "sparsity 1.0 is not in [0, 1)"),
        (["--sparsity", "-0.1"], "sparsity -0.1 is not in [0, 1)"),
        (["--sparsity"], "Missing value for argument '--sparsity'"),
        (["--sparsity", "0.5", "nan"], "sparsity nan is not in [0, 1)"),
        (["--pattern", "2:5"], "pattern '2:5' needs input sizes that 5 divides"),
        (["--pattern", "4:2"], "pattern '4:2' keeps 4 of 2"),
        (["--pattern", "2-4"], "unknown pattern '2-4'"),
        (["--pattern", "2:4", "--sparsity", "0.75"], "pattern '2:4' means sparsity 0.5, not 0.75"),
        (["--allocation", "globall"], "did you mean 'global'?"),
        (["--set", "alpha"], "--set got 'alpha'; expected NAME=VALUE"),
        (["--set", "alpha=1"], "pruner 'magnitude' has no hyper-parameter 'alpha'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["--device", "cpuu"], "unknown device 'cpuu'; known: auto, cpu, cuda, cuda:N, mps; did you mean 'cpu'?"),
        (["--dtype", "float"], "unknown dtype 'float'"),
        (["--until-stable"], "watches the masks of one running calibration, but pruner 'magnitude' needs no data"),
        (["--method", "itersnip", "--until-stable"], "prunes in steps; leave --until-stable out, or take one of: m"),
        (["--augment", "papers"], "unknown augmentation 'papers'; known: paper; did you mean 'paper'?"),
        (["--split", "val"], "--split val was given without data; name them with --data SOURCE"),
        (["--checkpoint-every", "-1"], "--checkpoint-every -1 was given; expected 0 (none) or more"),
        (["--method", "multiflow"], "needs calibration data and none were given; name some with --data"),
        (["--method", "multiflow", "--data", "nowhere"], "no data at 'nowhere'"),
        (["--family", "blip"], "is of family 'xvlm': its config says model_type 'xvlm'; leave --family out"),
        (["--config", "base"], "--config is for files of an original release"),
        (["--out", "file"], "output folder 'file' is a file"),
        (["--out", "file/below"], "cannot write into output folder 'file/below'"),
        (["--out", "full"], "output folder 'full' already holds other files"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    run: Run, tiny: Path, tmp_path: Path, args: list[str], said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    method = [] if "--method" in args else ["--method", "magnitude"]
    assert said in run("prune", tiny, *method, *args).error
    assert files(tmp_path) == ["file", "full/thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize(("model", "said"), [
    ("nowhere/model.pth", "there is no file or folder 'nowhere/model.pth'"),
    ("/nowhere/model", "there is no file or folder '/nowhere/model'"),
    ("empty", "folder 'empty' holds no config.json"),
])  # fmt: skip
def test_a_model_that_is_not_there(run: Run, tmp_path: Path, model: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    assert said in run("prune", model, "--method", "magnitude").error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--batches", 0), ("--batches", -3), ("--batch-size", 0), ("--workers", -1)]
)
def test_counts_below_one(run: Run, tiny: Path, pairs: Path, option: str, value: int, tmp_path: Path) -> None:
    least = 0 if option == "--workers" else 1
    said = f"{option} {value} was given; expected at least {least}"
    assert said in run("prune", tiny, "--data", pairs, option, value).error
    assert list(tmp_path.iterdir()) == []


def image_folder(folder: Path, world: Path, count: int = 6) -> Path:
    """Images with captions beside them."""
    folder.mkdir()
    for source in sorted((world / "pretrain" / "vg" / "images").iterdir())[:count]:
        shutil.copy(source, folder / source.name)
        (folder / source.name).with_suffix(".txt").write_text("a red square")
    return folder


def test_broken_images_are_skipped_counted_and_reported(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", world)
    (folder / "1.jpg").write_bytes(b"no image")
    (folder / "2.jpg").write_bytes((folder / "3.jpg").read_bytes()[:200])
    ran = run("prune", tiny, "--data", folder, "--batch-size", 2, "--sparsity", 0.5, "--out", "out")
    assert ran.code == 0
    assert "4 pairs" in ran.out
    assert "2 of 6 items skipped: " in ran.out
    assert "1.jpg (" in ran.out
    assert "2.jpg (" in ran.out
    assert json.loads(Path("out/result.json").read_text())["data"]["skipped"] == 2
    assert "2 of 6 items skipped: " in run("show", "out").out


def test_only_broken_images_are_an_error(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", world, count=2)
    for image in folder.glob("*.jpg"):
        image.write_bytes(b"no image")
    assert "can be read" in run("prune", tiny, "--data", folder, "--out", "out").error
    assert not (tmp_path / "out").exists()


def test_missing_captions(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    assert "captions are missing" in run("prune", tiny, "--data", world / "images" / "val2014").error
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_data_folder(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "no data found in 'data'" in run("prune", tiny, "--data", "data").error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_tokenizer_that_is_not_there_names_the_option(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    assert "--tokenizer DIR_OR_ID" in run("prune", tiny, "--data", pairs, "--tokenizer", "./nowhere").error
    assert list(tmp_path.iterdir()) == []


def test_no_tokenizer_at_all_names_the_option(
    run: Run, tiny: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    monkeypatch.setattr("multiflow.families.opening.DEFAULT_TOKENIZER", "nobody/no-tokenizer")
    error = run("prune", bare, "--data", pairs).error
    assert "no tokenizer found at 'nobody/no-tokenizer'" in error
    assert "--tokenizer DIR_OR_ID" in error
    assert run("prune", bare, "--data", pairs, "--tokenizer", tiny, "--batches", 1).code == 0


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    from multiflow.data import build_word_tokenizer

    build_word_tokenizer([f"word{i}" for i in range(500)]).save_pretrained(tmp_path / "large")
    error = run("prune", tiny, "--data", pairs, "--tokenizer", "large").error
    assert "the tokenizer has 505 tokens, the model embeds" in error
    assert "--tokenizer DIR_OR_ID" in error


def test_a_pattern_that_does_not_fit_offers_what_the_command_line_can_do(run: Run, tiny: Path) -> None:
    error = run("prune", tiny, "--method", "magnitude", "--pattern", "2:5").error
    assert error.endswith("has 16 inputs; choose another N:M or leave the layer dense")


def test_infinite_activations_name_layer_and_batch(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    model: Any = load_model(tiny)
    with torch.no_grad():
        model.vision_encoder.encoder.layers[0].mlp.fc1.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "bad")
    shutil.copy(tiny / "tokenizer.json", tmp_path / "bad")
    shutil.copy(tiny / "tokenizer_config.json", tmp_path / "bad")
    error = run("prune", "bad", "--data", pairs, "--out", "out").error
    assert "layers.0.mlp.fc2' in batch 1" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("./tinny", "there is no file or folder './tinny'; did you mean 'tiny'?"),
        ("tinny.pth", "there is no file or folder 'tinny.pth'"),
        ("some/model", "'some/model' is no file or folder here, nor on Hugging Face"),
        ("tiny/weight.safetensors", "did you mean 'weights.safetensors'?"),
    ],
)
def test_a_mistyped_model_is_said_before_data_are_asked_for(
    model: str, said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "weights.safetensors").touch()
    assert said in run("prune", model, "--method", "wanda").error
