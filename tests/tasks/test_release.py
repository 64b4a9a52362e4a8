from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from multiflow.data import collate_pairs
from multiflow.data.shapes import describe, make_scenes, render
from multiflow.models.xvlm import XVLMForPretraining
from multiflow.tasks.pretrain import shapes_model, shapes_tokenizer
from multiflow.tasks.release import evaluate_shapes, masked_word_accuracy, release
from tests.tasks.small import SMALL

TOKENIZER = shapes_tokenizer()


def test_the_folder_holds_float16_weights_a_tokenizer_and_a_card(tmp_path):
    model = shapes_model(SMALL, len(TOKENIZER))
    figures = release(model, TOKENIZER, tmp_path / "model", {"seed": 5, "command": "`make it`"}, scenes=12)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}

    loaded = XVLMForPretraining.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.float32
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half().float()), name
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert evaluate_shapes(loaded, tokenizer, scenes=12) == figures

    card = (tmp_path / "model" / "README.md").read_text()
    assert "| seed | 5 |" in card
    assert "| command | `make it` |" in card
    assert f"| re-ranked | {figures['tr1']:.1f} |" in card
    assert "12 scenes" in card
    assert next(model.parameters()).dtype == torch.float32


def test_an_older_folder_is_replaced(tmp_path):
    model = shapes_model(SMALL, len(TOKENIZER))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("")
    release(model, TOKENIZER, tmp_path / "model", {}, scenes=4)
    assert not (tmp_path / "model" / "old.txt").exists()


def test_masked_words_are_counted_once_each_and_unused_slots_not_at_all():
    model = shapes_model(SMALL, len(TOKENIZER)).train()
    scenes = make_scenes("test", 20)
    images = [render(scene, SMALL.image_size) for scene in scenes]
    texts = [describe(scene, 1)[0] for scene in scenes]
    batch = collate_pairs(images, texts, tokenizer=TOKENIZER, image_size=SMALL.image_size)
    labels = batch["mlm_labels"][batch["mlm_labels"] != -100]
    word = labels.mode().values.item()
    share = 100 * (labels == word).float().mean().item()
    with torch.no_grad():
        model.text_encoder.cls.predictions.decoder.bias[word] += 1e4
    assert masked_word_accuracy(model, batch) == pytest.approx((share, share))
    with torch.no_grad():
        model.text_encoder.cls.predictions.decoder.bias[TOKENIZER.pad_token_id] += 1e6
    assert masked_word_accuracy(model, batch) == pytest.approx((0, share))
    assert model.training
