from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.data import collate_pairs
from multiflow.families.reading import FAMILIES, family_of, guessed_words
from multiflow.worlds.shapes import describe, make_scenes, render
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tiny import SMALL, SMALL_BLIP

SCENES = make_scenes("test", 20)
IMAGES = [render(scene, SMALL.image_size) for scene in SCENES]
TEXTS = [describe(scene, 1)[0] for scene in SCENES]


def always(bias: torch.Tensor, word: int, size: float) -> None:
    """Let a head prefer one word."""
    with torch.no_grad():
        bias[word] += size


def test_masked_words_are_counted_once_each_and_unused_slots_not_at_all():
    tokenizer = shapes_tokenizer()
    model = shapes_model(SMALL, len(tokenizer)).train()
    batch = collate_pairs(IMAGES, TEXTS, tokenizer=tokenizer, image_size=SMALL.image_size)
    labels = batch["mlm_labels"][batch["mlm_labels"] != -100]
    word = labels.mode().values.item()
    share = 100 * (labels == word).float().mean().item()
    bias = model.text_encoder.cls.predictions.decoder.bias
    always(bias, word, 1e4)
    assert guessed_words(model, batch) == pytest.approx((share, share))
    always(bias, tokenizer.pad_token_id, 1e6)
    assert guessed_words(model, batch) == pytest.approx((0, share))
    assert model.training


def test_next_words_are_those_after_the_first_token_padding_left_out():
    tokenizer = shapes_tokenizer("blip")
    model = shapes_model(SMALL_BLIP, len(tokenizer)).train()
    batch = collate_pairs(IMAGES, TEXTS, tokenizer=tokenizer, image_size=SMALL.image_size, mlm=False, end=True)
    words = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()]
    word = words.mode().values.item()
    share = 100 * (words == word).float().mean().item()
    bias = model.text_decoder.cls.predictions.bias
    always(bias, word, 1e4)
    assert guessed_words(model, batch) == pytest.approx((share, share))
    always(bias, tokenizer.sep_token_id, 1e5)
    assert guessed_words(model, batch)[0] == pytest.approx(100 * len(TEXTS) / len(words))  # one [SEP] a text
    always(bias, tokenizer.pad_token_id, 1e6)
    assert guessed_words(model, batch) == pytest.approx((0, share))
    assert model.training


@torch.no_grad()
def test_a_word_is_guessed_from_those_before_it():
    """Guesses of a plain loop over prefixes equal those of one pass."""
    tokenizer = shapes_tokenizer("blip")
    model = shapes_model(SMALL_BLIP, len(tokenizer)).eval()
    batch = collate_pairs(IMAGES[:3], TEXTS[:3], tokenizer=tokenizer, image_size=SMALL.image_size, mlm=False, end=True)
    guesses, words, real = family_of(model).guess(model, batch)
    images = model.encode_image(batch["pixel_values"])
    for at in range(words.shape[1]):
        ids, mask = batch["input_ids"][:, : at + 1], batch["attention_mask"][:, : at + 1]
        logits = model.text_decoder.cls(model.decode(ids, mask, images)[:, -1])
        assert torch.equal(logits.argmax(-1)[real[:, at]], guesses[:, at][real[:, at]])
        assert torch.equal(words[:, at], batch["input_ids"][:, at + 1])


def test_families_are_found_by_model_type():
    assert [family_of(shapes_model(settings, 50)).name for settings in (SMALL, SMALL_BLIP)] == ["X-VLM", "BLIP"]
    with pytest.raises(MultiflowError, match=f"of type 'vit'; this task takes models of type {' or '.join(FAMILIES)}"):
        family_of(SimpleNamespace(config=SimpleNamespace(model_type="vit")))
