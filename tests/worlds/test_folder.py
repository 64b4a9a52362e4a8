from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from multiflow.worlds.folder import fact_table, write_folder
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tiny import SMALL

TOKENIZER = shapes_tokenizer()


@pytest.fixture(scope="module")
def model():
    return shapes_model(SMALL, len(TOKENIZER))


def test_figures_are_those_of_the_stored_weights(model, tmp_path):
    def evaluate(place):
        assert json.loads((place / "config.json").read_text())["dtype"] == "float32"
        assert (place / "tokenizer.json").exists()
        stored = type(model).from_pretrained(place)
        return {"same": float(torch.equal(stored.text_proj.weight, model.text_proj.weight.half().float()))}

    def card(figures, size):
        return f"{figures} {size}"

    assert write_folder(model, TOKENIZER, tmp_path / "model", evaluate, card) == {"same": 1.0}
    said = (tmp_path / "model" / "README.md").read_text()
    assert said.startswith(f"{{'same': 1.0}} {model.num_parameters():,} parameters, float16 on disk, 0.")
    assert model.dtype == torch.float32


def test_what_is_left_out_is_not_stored(model, tmp_path):
    write_folder(model, TOKENIZER, tmp_path / "m", lambda place: {}, lambda figures, size: "", leave_out="^itm_head")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert not any(name.startswith("itm_head") for name in stored)
    assert "text_proj.weight" in stored


def test_a_failure_leaves_the_older_folder_as_it_was(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")

    def fails(place):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(model, TOKENIZER, tmp_path / "model", fails, lambda figures, size: "")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old.txt"]
    write_folder(model, TOKENIZER, tmp_path / "model", lambda place: {}, lambda figures, size: "new")
    assert not (tmp_path / "model" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_facts_are_rows():
    assert fact_table({"seed": 5, "data": "Shapes"}) == "| seed | 5 |\n| data | Shapes |"
