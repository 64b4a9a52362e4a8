"""The bundled models, used as a newcomer does: nothing but their names."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import torch
from transformers import AutoTokenizer

import multiflow as mf
from multiflow.cli import main
from multiflow.data import collate_pairs
from multiflow.worlds.digits.vit import digit_accuracy, digit_batches
from multiflow.worlds.shapes import describe, make_scenes, render
from multiflow.worlds.shapes.release import evaluate_shapes

ASSETS = files("multiflow") / "assets"
FOLDER = ASSETS / "xvlm-shapes"
DIGITS = ASSETS / "vit-digits"
SEARCH = {"scenes": 40, "shortlist": 8}


def test_it_is_small_stored_in_float16_and_tells_how_it_was_made():
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {path.name for path in FOLDER.iterdir()} == names
    assert sum(len(path.read_bytes()) for path in FOLDER.iterdir()) < 8e6
    card = (FOLDER / "README.md").read_text()
    assert "| command | `multiflow pretrain" in card
    assert "| seed | 0 |" in card


@pytest.fixture(scope="module")
def model():
    return mf.load_model("xvlm-shapes")


def test_it_finds_scenes_it_has_never_seen(model):
    figures = evaluate_shapes(model, AutoTokenizer.from_pretrained(str(FOLDER)), captions=2, **SEARCH)
    assert figures["tr1"] > 90
    assert figures["ir1"] > 90
    assert figures["mlm"] > 5 * figures["mlm_majority"]


def test_the_demo_shows_that_methods_differ(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--scenes", "24", "--sparsity", "0.63", "--batches", "2", "--out", str(out)]) == 0
    numbers = json.loads((out / "demo.json").read_text())
    recall = {row["method"]: row["quality"]["ir1"] for row in numbers["rows"]}
    assert recall["random"] < 15
    assert recall["magnitude-modality"] > 50
    assert recall["multiflow"] > 50
    assert mf.Masks.load(out / "masks/multiflow/mask-0.63.safetensors").sparsity == pytest.approx(0.63, abs=1e-4)
    assert "<html" in (out / "report.html").read_text()
    assert "multiflow" in capsys.readouterr().out


def test_the_blip_finds_scenes_too_and_survives_pruning():
    model, tokenizer = mf.load_model("blip-shapes"), AutoTokenizer.from_pretrained(str(ASSETS / "blip-shapes"))
    dense = evaluate_shapes(model, tokenizer, captions=1, **SEARCH)
    assert dense["tr1"] > 90
    assert dense["ir1"] > 90
    assert dense["lm"] > 5 * dense["lm_majority"]
    scenes = make_scenes("train", 64, seed=5)
    images, captions = [render(scene, 48) for scene in scenes], [describe(scene, 1)[0] for scene in scenes]
    batches = [collate_pairs(images, captions, tokenizer=tokenizer, image_size=48, mlm=False, end=True)]
    result = mf.prune(model, "multiflow", sparsity=0.5, batches=batches)
    queue = model.image_queue.clone()
    assert result.apply_(model, 0.5).group_sparsities() == {"vision": 0.5, "text": 0.5}
    assert torch.equal(model.image_queue, queue)
    sparse = evaluate_shapes(model, tokenizer, captions=1, **SEARCH)
    assert 50 < sparse["ir1"] <= 100


def test_all_of_them_together_are_small():
    assert sum(len(path.read_bytes()) for folder in ASSETS.iterdir() for path in folder.iterdir()) < 15e6
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {path.name for path in DIGITS.iterdir()} == names
    assert sum(len(path.read_bytes()) for path in DIGITS.iterdir()) < 3e5


def test_the_vit_reads_digits_and_survives_pruning():
    model, test = mf.load_model("vit-digits"), digit_batches("test", batch_size=180)
    dense = digit_accuracy(model, test)
    assert dense > 97
    assert f"test split: {dense:.1f} %" in (DIGITS / "README.md").read_text()
    result = mf.prune(model, "multiflow", sparsity=[0.5], batches=digit_batches("train", limit=4))
    result.apply_(model, 0.5)
    assert sum(int((layer.weight == 0).sum()) for layer in model.modules() if type(layer).__name__ == "Linear") > 50_000
    assert digit_accuracy(model, test) > 80
