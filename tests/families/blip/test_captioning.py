from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BlipConfig, BlipForConditionalGeneration

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.losses import language_loss
from multiflow.families.blip.models import BlipForCaptioning
from multiflow.families.blip.parts import shared_names
from multiflow.families.blip.tasks import captioning
from multiflow.families.opening import load_model
from tests.families.blip.sizes import pairs, small_model

SEP = 2


def caption_model() -> BlipForCaptioning:
    return captioning(small_model(), eos_token_id=SEP)[0]


def published(model: BlipForCaptioning) -> BlipForConditionalGeneration:
    """The captioning model of transformers with the same weights."""
    text, vision = model.text_decoder.config.to_dict(), model.vision_model.config.to_dict()
    config = BlipConfig(text_config={**text, "sep_token_id": SEP}, vision_config=vision)
    other = BlipForConditionalGeneration(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def test_logits_and_loss_are_those_of_pretraining_and_of_transformers():
    pretrained, batch = small_model(), pairs()
    model = caption_model()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out, expected = model(**batch, labels=labels), pretrained(**batch)
    torch.testing.assert_close(out.logits, expected.decoder_logits)
    torch.testing.assert_close(out.loss, expected.loss_lm)
    assert model(**batch).loss is None
    begun = {**batch, "input_ids": batch["input_ids"].clone()}
    begun["input_ids"][:, 0] = model.config.bos_token_id
    theirs = published(model)(**begun, labels=labels)
    torch.testing.assert_close(out.logits, theirs.logits)
    torch.testing.assert_close(out.loss, theirs.loss)


@torch.no_grad()
def test_labels_that_do_not_count():
    model, batch = caption_model(), pairs()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :4] = -100  # [CLS] a picture of
    out = model(**batch, labels=labels)
    counted = batch["attention_mask"].clone()
    counted[:, :4] = 0
    torch.testing.assert_close(out.loss, language_loss(out.logits, batch["input_ids"], counted))
    plain = F.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), labels[:, 4:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(out.loss, plain)


@torch.no_grad()
def test_greedy_captions_are_the_likeliest_words_one_by_one():
    model, batch = caption_model(), pairs()
    ids = torch.tensor([[40, 5, 6]]).repeat(4, 1)
    found = model.generate(batch["pixel_values"], ids, max_length=9, eos_token_id=None)
    ids[:, 0] = model.config.bos_token_id
    while ids.shape[1] < 9:
        logits = model(batch["pixel_values"], ids, torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, ids)
    assert len(set(map(tuple, found.tolist()))) > 1  # the images matter


@torch.no_grad()
def test_beam_search_is_that_of_transformers():
    model, batch = caption_model(), pairs()
    prompt = torch.tensor([[48, 5, 6]]).repeat(4, 1)
    options = {"num_beams": 3, "min_length": 5, "max_length": 12}
    found = model.generate(batch["pixel_values"], prompt, **options)
    other = published(model).generate(batch["pixel_values"], F.pad(prompt, (0, 1), value=SEP), **options)
    assert torch.equal(found, other)
    assert torch.equal(found[:, :3], prompt)
    slow = model.generate(batch["pixel_values"], prompt, **options, use_cache=False)
    assert torch.equal(found, slow)
    assert not torch.equal(found, model.generate(batch["pixel_values"], prompt, **{**options, "num_beams": 1}))


@torch.no_grad()
def test_a_caption_ends_with_sep_and_is_padded_but_not_before_its_least_length():
    model, batch = caption_model(), pairs()
    prompt = torch.full((4, 1), 48)
    model.text_decoder.cls.predictions.bias[SEP] = 50.0  # it wants to end at once
    found = model.generate(batch["pixel_values"], prompt, num_beams=3, min_length=5, max_length=12)
    assert found.shape == (4, 6)
    assert (found[:, 5] == SEP).all()
    assert not (found[:, :5] == SEP).any()


@pytest.mark.parametrize("load", [BlipForCaptioning.from_pretrained, load_model])
def test_saving_and_loading(tmp_path, load):
    model = caption_model()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, BlipForCaptioning)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert loaded.config.eos_token_id == SEP
    assert shared_names(loaded) == shared_names(model)
    assert len(shared_names(loaded)) == 2  # the words, and the bias of their logits
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    prompt, pixels = torch.full((4, 1), 48), pairs()["pixel_values"]
    assert torch.equal(loaded.generate(pixels, prompt, max_length=6), model.generate(pixels, prompt, max_length=6))


def test_the_batch_is_left_alone():
    model, batch = caption_model(), pairs()
    before = copy.deepcopy(batch)
    model(**batch, labels=batch["input_ids"])
    model.generate(batch["pixel_values"], batch["input_ids"][:, :2], max_length=5)
    assert all(torch.equal(value, before[name]) for name, value in batch.items())


def test_labels_of_a_wrong_shape():
    with pytest.raises(MultiflowError, match=r"labels has shape \(4, 6\) .*\(4, 7\)"):
        caption_model()(**pairs(), labels=torch.zeros(4, 6))
