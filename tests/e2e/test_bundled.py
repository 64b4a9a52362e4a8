"""The bundled model, used as a newcomer does: nothing but its name."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from transformers import AutoTokenizer

import multiflow as mf
from multiflow.cli import main
from multiflow.tasks.release import evaluate_shapes

FOLDER = files("multiflow") / "assets" / "xvlm-shapes"


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
    figures = evaluate_shapes(model, AutoTokenizer.from_pretrained(str(FOLDER)), scenes=60, captions=2)
    assert figures["tr1"] > 90
    assert figures["ir1"] > 90
    assert figures["mlm"] > 5 * figures["mlm_majority"]


def test_the_demo_shows_that_methods_differ(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--scenes", "40", "--sparsity", "0.63", "--batches", "4", "--out", str(out)]) == 0
    numbers = json.loads((out / "demo.json").read_text())
    recall = {row["method"]: row["quality"]["ir1"] for row in numbers["rows"]}
    assert recall["random"] < 15
    assert recall["magnitude-modality"] > 50
    assert recall["multiflow"] > 50
    assert mf.Masks.load(out / "masks/multiflow/mask-0.63.safetensors").sparsity == pytest.approx(0.63, abs=1e-4)
    assert "<html" in (out / "report.html").read_text()
    assert "multiflow" in capsys.readouterr().out
