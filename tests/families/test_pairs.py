from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.data import collate_pairs
from multiflow.families.pairs import draw_negatives, guessed_words, recipe_of, scoring_of
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
    assert guessed_words(model, batch, recipe_of(model).guess) == pytest.approx((share, share))
    always(bias, tokenizer.pad_token_id, 1e6)
    assert guessed_words(model, batch, recipe_of(model).guess) == pytest.approx((0, share))
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
    assert guessed_words(model, batch, recipe_of(model).guess) == pytest.approx((share, share))
    always(bias, tokenizer.sep_token_id, 1e5)
    one_each = guessed_words(model, batch, recipe_of(model).guess)[0]  # one [SEP] a text
    assert one_each == pytest.approx(100 * len(TEXTS) / len(words))
    always(bias, tokenizer.pad_token_id, 1e6)
    assert guessed_words(model, batch, recipe_of(model).guess) == pytest.approx((0, share))
    assert model.training


@torch.no_grad()
def test_a_word_is_guessed_from_those_before_it():
    """Guesses of a plain loop over prefixes equal those of one pass."""
    tokenizer = shapes_tokenizer("blip")
    model = shapes_model(SMALL_BLIP, len(tokenizer)).eval()
    batch = collate_pairs(IMAGES[:3], TEXTS[:3], tokenizer=tokenizer, image_size=SMALL.image_size, mlm=False, end=True)
    guesses, words, real = recipe_of(model).guess(model, batch)
    images = model.encode_image(batch["pixel_values"])
    for at in range(words.shape[1]):
        ids, mask = batch["input_ids"][:, : at + 1], batch["attention_mask"][:, : at + 1]
        logits = model.text_decoder.cls(model.decode(ids, mask, images)[:, -1])
        assert torch.equal(logits.argmax(-1)[real[:, at]], guesses[:, at][real[:, at]])
        assert torch.equal(words[:, at], batch["input_ids"][:, at + 1])


def test_pairs_are_scored_by_models_that_compare_them():
    assert [scoring_of(shapes_model(settings, 50)).adds_cosine for settings in (SMALL, SMALL_BLIP)] == [False, True]
    with pytest.raises(MultiflowError, match="of type 'vit'; .*xvlm or xvlm-retrieval"):
        scoring_of(SimpleNamespace(config=SimpleNamespace(model_type="vit")))


def test_a_family_that_nobody_can_pretrain():
    with pytest.raises(MultiflowError, match="'dino' cannot be pretrained .*blip, xvlm"):
        recipe_of("dino")
    with pytest.raises(MultiflowError, match="unknown family 'xvml'.*did you mean 'xvlm'"):
        recipe_of("xvml")


def test_positives_are_never_drawn_however_similar():
    group = torch.tensor([0, 0, 1, 1, 1, 2])
    positives = group[:, None] == group
    sim = torch.where(positives, 50.0, 0.0)
    drawn = set()
    for seed in range(100):
        images, texts = draw_negatives(sim, sim.T, seed, floor=1e-4, positives=positives)
        drawn |= {(i, int(j)) for column in (images, texts) for i, j in enumerate(column)}
    assert drawn == {(i, j) for i in range(6) for j in range(6) if group[i] != group[j]}


def test_by_default_the_diagonal_is_positive():
    sim = torch.randn(4, 4)
    for seed in range(10):
        given = draw_negatives(sim, sim.T, seed, floor=1e-4, positives=torch.eye(4, dtype=torch.bool))
        default = draw_negatives(sim, sim.T, seed, floor=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(given, default, strict=True))
