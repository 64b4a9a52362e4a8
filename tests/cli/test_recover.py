"""``multiflow recover``, and what takes its result."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from multiflow.families.opening import load_model
from tests.cli.conftest import Run, files

QUICK = ("--batches", 3, "--batch-size", 4, "--epochs", 2, "--lr", 0.005)


@pytest.fixture(scope="module")
def mask_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mf.prune(load_model(tiny), "magnitude", 0.75).save(tmp_path_factory.mktemp("masks") / "run")
    return folder / "mask-0.75.safetensors"


def test_a_mask_file_becomes_another_with_weights_beside_it(run: Run, tiny: Path, mask_file, pairs, tmp_path) -> None:
    ran = run("recover", tiny, "--mask", mask_file, "--data", pairs, *QUICK, "--then", "scale", "--out", "rec")
    assert ran.code == 0, ran.err
    assert "error of each sub-block on what was held out" in ran.out
    assert "distillation loss on 1 of 3 batches, held out" in ran.out
    assert files(tmp_path / "rec") == ["mask-0.75.safetensors", "result.json", "weights-0.75.safetensors"]
    masks = mf.Masks.load(tmp_path / "rec/mask-0.75.safetensors")
    assert masks == mf.Masks.load(mask_file)
    assert masks.settings["recovered"] == ["blocks", "scale"]

    # apply and export write weights, biases and norms
    weights = load_file(tmp_path / "rec/weights-0.75.safetensors")
    others = set(weights) - set(masks)
    assert any(name.endswith("LayerNorm.weight") for name in others)
    assert run("apply", tiny, "rec/mask-0.75.safetensors", "--out", "sparse").code == 0
    export = run("export", tiny, "--mask", "rec/mask-0.75.safetensors", "--out", "packed", "--values", "fp32")
    assert export.code == 0, export.err
    for folder in ("sparse", "packed"):
        model = load_model(tmp_path / folder)
        assert masks.is_applied(model)
        assert all(torch.equal(model.get_parameter(name), weights[name]) for name in others)
        assert all(torch.equal(model.get_submodule(name).weight, weights[name]) for name in masks)


def test_show_tells_what_was_recovered_how_from_what_on_which_data(run: Run, tiny: Path, mask_file, pairs) -> None:
    words = ("recover", tiny, "--data", pairs, *QUICK)
    assert run(*words, "--mask", mask_file, "--how", "scale", "--out", "one").code == 0
    first = run("show", "one").out
    assert "pruned by magnitude" in first
    assert "recovered by scale (epochs 2, lr 0.005" in first
    assert f"from {mask_file}, what it keeps taught by {tiny}" in first
    assert "on 3 batches, 12 pairs: " in first
    assert str(pairs) in first
    before, after = re.search(r"held out: (\S+) before, (\S+) after", first).groups()
    assert float(after) < float(before)
    assert "ran in steps" not in first

    # recovered once more: both are told, with the figures that the first one printed
    assert run(*words, "--mask", "one/mask-0.75.safetensors", "--how", "blocks", "--out", "two").code == 0
    both = run("show", "two").out
    assert both.index(f"{before} before, {after} after") < both.index("recovered again by blocks")
    assert "from one/mask-0.75.safetensors" in both
    assert "error of each sub-block on what was held out" in both

    # a result saved in Python tells the same, but for the paths that it never had
    folder = mf.Result.load("two").save("three")
    assert "recovered again by blocks" in run("show", folder).out


def test_finetune_starts_from_what_was_recovered(run: Run, tiny: Path, mask_file, world: Path, pairs, tmp_path) -> None:
    assert (
        run("recover", tiny, "--mask", mask_file, "--data", pairs, *QUICK, "--how", "scale", "--out", "rec").code == 0
    )
    data = ("--data", world / "coco", "--preset", "shapes", "--image-size", 0, "--batch-size", 4)
    words = ("finetune", "retrieval", tiny, "--mask", "rec/mask-0.75.safetensors", *data, "--steps", 1, "--lr", 1e-9)
    ran = run(*words, "--out", "tuned")
    assert ran.code == 0, ran.err
    weights, model = load_file(tmp_path / "rec/weights-0.75.safetensors"), load_model(tmp_path / "tuned/model")
    name = next(name for name in weights if name.endswith("LayerNorm.weight") and "encoder" in name)
    torch.testing.assert_close(model.get_parameter(name), weights[name])
    assert not torch.equal(load_model(tiny).get_parameter(name), weights[name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--how", "block"), "unknown way of recovery 'block'"),
        (("--rank", 4), "unknown setting of blocks 'rank'"),
        (("--epochs", 0), "--epochs 0 was given"),
        (("--then", "distil"), "did you mean 'distill'?"),
    ],
)
def test_settings_that_are_none(run: Run, tiny: Path, mask_file, pairs, tmp_path, words, said) -> None:
    ran = run("recover", tiny, "--mask", mask_file, "--data", pairs, *words, "--out", "rec")
    assert ran.code == 2
    assert said in ran.error
    assert not (tmp_path / "rec").exists()


def test_data_are_needed(run: Run, tiny: Path, mask_file, tmp_path) -> None:
    ran = run("recover", tiny, "--mask", mask_file, "--out", "rec")
    assert "name some with --data SOURCE" in ran.error
