from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, EncoderDecoderCache

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.models import XVLMForCaptioning
from tests import golden_data
from tests.families.xvlm.sizes import pairs, small_model
from tests.golden_data import assert_golden

KEYS = ("pixel_values", "input_ids", "attention_mask")


def captions(count=4):
    return {key: value for key, value in pairs(count).items() if key in KEYS}


def captioner(**options) -> XVLMForCaptioning:
    return mf.task_model(small_model(), "captioning", **options)


@pytest.fixture(scope="module")
def golden():
    return mf.task_model(golden_data.model("xvlm"), "captioning", eos_token_id=102, pad_token_id=0)


@torch.no_grad()
def test_logits_and_loss_are_golden(golden):
    given = golden_data.tensors("xvlm", "tasks")
    ids, mask = given["caption_ids"], given["caption_atts"]
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : given["prompt_length"]] = -100
    out = golden(pixel_values=given["image"], input_ids=ids, attention_mask=mask, labels=labels)
    assert_golden(out.logits, given["xvlm_caption_logits"])
    torch.testing.assert_close(out.loss, given["xvlm_caption_loss_train_label_smoothing_0.1"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_greedy_continuation_is_golden(golden, use_cache):
    given = golden_data.tensors("xvlm", "tasks")
    expected = given["xvlm_caption_greedy_ids"]
    begin = torch.tensor([[101, 300]]).repeat(len(expected), 1)
    found = golden.generate(given["image"], begin, max_length=expected.shape[1], use_cache=use_cache)
    assert torch.equal(found, expected)


def beam_search(model, image, begin, beams, longest):
    """The plainest beam search there is, without an end token: no cache, one image."""
    embeds, rows = model.encode_image(image[None]), [(0.0, begin.tolist())]
    while len(rows[0][1]) < longest:
        grown = []
        for score, ids in rows:
            log_probs = model(input_ids=torch.tensor([ids]), image_embeds=embeds).logits[0, -1].log_softmax(-1)
            grown += [(score + p, [*ids, token]) for token, p in enumerate(log_probs.tolist())]
        rows = sorted(grown, reverse=True)[:beams]
    return torch.tensor(rows[0][1])


@torch.no_grad()
def test_beam_search_finds_the_same_with_and_without_cache_and_by_hand():
    model, images = captioner(), pairs(2)["pixel_values"]
    begin = torch.tensor([[3, 4], [3, 5]])
    options = {"num_beams": 3, "max_length": 8, "pad_token_id": 0}
    found = [model.generate(images, begin, use_cache=cached, **options) for cached in (True, False)]
    assert torch.equal(*found)
    for image, start, caption in zip(images, begin, found[0], strict=True):
        assert torch.equal(caption, beam_search(model, image, start, 3, 8))


def test_lengths_and_the_end_token():
    model, images = captioner(), pairs(2)["pixel_values"]
    begin = torch.tensor([[3], [3]])
    end = int(model.generate(images[:1], begin[:1], max_length=2)[0, 1])  # what the model likes best
    model = captioner(eos_token_id=end, pad_token_id=0)
    assert model.generate(images[:1], begin[:1], max_length=9).tolist() == [[3, end]]
    longer = model.generate(images, begin, num_beams=3, min_length=5, max_length=9)
    assert end not in longer[:, :4].tolist()[0]
    assert 5 <= longer.shape[1] <= 9


@torch.no_grad()
def test_each_image_goes_through_the_vision_tower_once_and_its_keys_are_computed_once():
    model, calls = captioner(), []
    key = model.text_encoder.bert.encoder.layer[-1].crossattention.self.key
    model.vision_encoder.register_forward_hook(lambda *_: calls.append("vision"))
    key.register_forward_hook(lambda *_: calls.append("key"))
    model.generate(pairs(2)["pixel_values"], torch.tensor([[3], [3]]), max_length=7)
    assert calls == ["vision", "key"]


@torch.no_grad()
def test_later_words_and_padding_change_nothing_before_them():
    model, batch = captioner(), captions(2)
    before = model(**batch).logits
    other = batch | {"input_ids": torch.cat([batch["input_ids"][:, :4], batch["input_ids"][:, 4:] * 0 + 9], dim=1)}
    torch.testing.assert_close(model(**other).logits[:, :4], before[:, :4])
    longer = batch | {key: F.pad(batch[key], (0, 3)) for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**longer).logits[:, :7], before)


@torch.no_grad()
def test_word_by_word_with_a_cache_is_the_whole_at_once():
    model, batch = captioner(), captions(2)
    ids, embeds = batch["input_ids"].clamp(min=3), model.encode_image(batch["pixel_values"])
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    steps = [
        model(input_ids=part, image_embeds=embeds, past_key_values=cache).logits for part in ids.split([3, 1, 3], 1)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), model(input_ids=ids, image_embeds=embeds).logits)


@torch.no_grad()
def test_the_image_matters_in_the_fusion_layers_only():
    model, batch = captioner(), captions(2)
    states = []
    for layer in model.text_encoder.bert.encoder.layer:
        layer.register_forward_hook(lambda module, args, out: states.append(out))
    model(**batch)
    model(**(batch | {"pixel_values": batch["pixel_values"] + 1}))
    first, second = states[:3], states[3:]
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, False]


def test_smoothing_zero_is_the_plain_cross_entropy():
    model, batch = captioner(label_smoothing=0.0), captions()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    assert model(**batch).loss is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "the batch has no 'pixel_values'"),
        ({"attention_mask": None}, "the batch has no 'attention_mask'"),
        ({"labels": torch.zeros(4, 6, dtype=torch.long)}, r"labels has shape \(4, 6\) and input_ids \(4, 7\)"),
    ],
)
def test_bad_batches(change, message):
    with pytest.raises(MultiflowError, match=message):
        captioner()(**(captions() | change))


def test_bad_options():
    with pytest.raises(MultiflowError, match="label_smoothing is 1.5; .* less than 1"):
        captioner(label_smoothing=1.5)
    with pytest.raises(MultiflowError, match="pixel_values has 2 rows and input_ids has 1"):
        captioner().generate(pairs(2)["pixel_values"], torch.tensor([[3]]))
