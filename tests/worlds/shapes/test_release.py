from __future__ import annotations

import re
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import multiflow as mf
from multiflow.families.blip.contrastive import MEMORY, momentum_pairs
from multiflow.families.blip.parts import shared_names
from multiflow.families.family import FAMILIES, family_of
from multiflow.families.pairs import recipe_of
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from multiflow.worlds.shapes.release import evaluate_shapes, release
from tests.tiny import FAMILIES as SETTINGS


@pytest.fixture(scope="module", params=list(SETTINGS))
def released(request, tmp_path_factory):
    """A model of either family, its tokenizer, the folder it was released to and its figures."""
    torch.manual_seed(0)
    tokenizer = shapes_tokenizer(request.param)
    model = shapes_model(SETTINGS[request.param], len(tokenizer))
    with torch.no_grad():
        for buffer in model.buffers():  # training has moved what BLIP remembers
            if buffer.is_floating_point():
                buffer.add_(1)
    folder = tmp_path_factory.mktemp("released") / "model"
    figures = release(model, tokenizer, folder, {"seed": 5, "command": "`make it`"}, scenes=12)
    return model, tokenizer, folder, figures


def test_the_folder_holds_float16_weights_a_tokenizer_and_a_card(released):
    model, tokenizer, folder, figures = released
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in stored.values()) == model.num_parameters()

    loaded = type(model).from_pretrained(folder)
    assert loaded.dtype == torch.float32
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).half().float()), name
    again = AutoTokenizer.from_pretrained(folder)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert evaluate_shapes(loaded, again, scenes=12) == figures
    assert next(model.parameters()).dtype == torch.float32


def test_the_card_is_that_of_the_family(released):
    model, _, folder, figures = released
    family, card = family_of(model), (folder / "README.md").read_text()
    assert f"# {family.title}, pretrained on Shapes" in card
    assert not any(other.title in card for other in FAMILIES.values() if other is not family)
    assert "| seed | 5 |" in card
    assert "| command | `make it` |" in card
    assert f"| re-ranked | {figures['tr1']:.1f} |" in card
    guessed = {"X-VLM": "Masked words guessed", "BLIP": "Next words guessed"}[family.title]
    assert f"{guessed}: {figures[recipe_of(model).words]:.1f}" in card
    assert "12 scenes" in card
    assert f'load_model("{family.name}-shapes")' in card
    assert ("logit plus cosine" in card) == (family.name == "blip")


def test_it_loads_without_a_warning_and_remembers_nothing(released):
    """BLIP: no copies, no queues in the file; loading makes copies of the weights and fresh queues, all is shared."""
    model, _, folder, _ = released
    stored = load_file(folder / "model.safetensors")
    assert not [name for name in stored if re.search(MEMORY, name) or "_m." in name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = mf.load_model(folder)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert shared_names(loaded) == shared_names(model)
    if family_of(model).name == "blip":
        assert momentum_pairs(loaded)
        assert all(torch.equal(copy, online) and copy is not online for copy, online in momentum_pairs(loaded))
        fresh = type(model)(model.config)
        for name in ("image_queue", "text_queue", "queue_ptr"):
            assert torch.equal(loaded.get_buffer(name), fresh.get_buffer(name)), name
        assert len(shared_names(loaded)) > 10
        assert loaded.text_decoder.bert.embeddings is loaded.text_encoder.embeddings


def test_an_older_folder_is_replaced(tmp_path):
    tokenizer = shapes_tokenizer()
    model = shapes_model(SETTINGS["xvlm"], len(tokenizer))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("")
    release(model, tokenizer, tmp_path / "model", {}, scenes=4)
    assert not (tmp_path / "model" / "old.txt").exists()
