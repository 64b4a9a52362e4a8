"""The BLIP models of transformers, and what holds for them and for ours alike."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
)

import multiflow as mf
from tests.families.blip.sizes import pairs, small_model

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT |= {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 48, "initializer_range": 0.2}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
VISION |= {"image_size": 24, "patch_size": 8, "initializer_range": 0.2}
CLASSES = [BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering]


def build(model_class, **text):
    torch.manual_seed(0)
    config = BlipConfig(text_config=TEXT | text, vision_config=VISION, image_text_hidden_size=12)
    return model_class(config).eval()


def questions(count: int = 4) -> dict[str, torch.Tensor]:
    """Questions with answers of 4 tokens at most, padded."""
    labels = torch.randint(3, 48, (count, 4), generator=torch.Generator().manual_seed(5))
    return pairs(count) | {"labels": labels.masked_fill(torch.arange(4) > 3 - torch.arange(count)[:, None] % 2, -100)}


@pytest.mark.parametrize("model_class", CLASSES)
def test_models_of_transformers_from_a_local_folder(model_class, tmp_path):
    build(model_class).save_pretrained(tmp_path)
    model = mf.load_model(tmp_path)
    assert type(model) is model_class
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    text = {"BlipForConditionalGeneration": 20, "BlipForImageTextRetrieval": 20, "BlipForQuestionAnswering": 40}
    assert {group: len(layers) for group, layers in layout.groups.items()} == {
        "vision": 8, "text": text[model_class.__name__]
    }  # fmt: skip
    assert set(mf.original_names(model)) == set(layout)
    batches = [pairs(), pairs(3, seed=1), pairs(1, seed=2)]
    result = mf.prune(model, "multiflow", [0.5, 0.75], batches)
    assert result.masks[0.75].sparsity == pytest.approx(0.75, abs=1e-3)
    loss = adapter.loss(model, batches[0])
    gradients = torch.autograd.grad(loss, [model.get_submodule(name).weight for name in layout])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert mf.prune(model.bfloat16(), "wanda", 0.5, batches).masks[0.5].sparsity == 0.5


@pytest.mark.parametrize("make", [small_model, lambda: build(CLASSES[0]), lambda: build(CLASSES[1])])
def test_padding_does_not_count_in_statistics(make):
    assert_padding_does_not_count(make(), pairs(), [*pairs()])


def test_padding_does_not_count_in_statistics_of_question_answering():
    model, batch = build(BlipForQuestionAnswering), questions()
    assert_padding_does_not_count(model, batch, ["labels"])
    # of a padded question the decoder of transformers 5.23 sees the padding too: its own cross-attention drops the mask
    assert_padding_does_not_count(model, batch, ["input_ids", "attention_mask"], r"^(vision_model|text_encoder)")


def assert_padding_does_not_count(model, batch, keys, layers=""):
    longer = batch | {key: F.pad(batch[key], (0, 3)) for key in keys if batch[key].ndim == 2}
    short, long = (mf.calibrate(model, [x])["input_norm"] for x in (batch, longer))
    for name in short:
        if re.search(layers, name):
            torch.testing.assert_close(short[name], long[name], rtol=1e-4, atol=1e-5, msg=name)


def test_names_of_transformers_models_in_the_release():
    names = mf.original_names(build(BlipForConditionalGeneration))
    assert names["vision_model.encoder.layers.1.self_attn.projection"] == "visual_encoder.blocks.1.attn.proj.weight"
    layer = "text_decoder.bert.encoder.layer.0.output.dense"
    assert names[layer] == f"{layer}.weight"  # nothing is shared here


@torch.no_grad()
def test_captioning_loss_is_that_of_transformers_with_smoothed_labels():
    model, batch = build(BlipForConditionalGeneration, label_smoothing=0.1), pairs()
    ids = batch["input_ids"].clone()
    ids[:, 0] = 48
    labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
    expected = model(**(batch | {"input_ids": ids}), labels=labels).loss
    torch.testing.assert_close(mf.adapter_for(model).loss(model, batch), expected)
    torch.testing.assert_close(mf.adapter_for(build(type(model))).loss(model, batch | {"labels": labels}), expected)


@torch.no_grad()
def test_answer_loss_is_that_of_transformers_with_smoothed_labels():
    model, batch = build(BlipForQuestionAnswering, label_smoothing=0.1), questions()
    marked, answers = batch["input_ids"].clone(), batch["labels"].clamp(min=0)
    mask = (batch["labels"] != -100).long()
    marked[:, 0], answers[:, 0] = 49, 48
    expected = model(
        pixel_values=batch["pixel_values"],
        input_ids=marked,
        attention_mask=batch["attention_mask"],
        decoder_input_ids=answers,
        decoder_attention_mask=mask,
        labels=answers.masked_fill(mask == 0, -100),
    ).loss
    torch.testing.assert_close(mf.adapter_for(model).loss(model, batch), expected)
    padded = batch | {"labels": batch["labels"].clamp(min=0)}  # [PAD] in place of -100
    torch.testing.assert_close(mf.adapter_for(model).loss(model, padded), expected)


def test_the_streams_of_question_answering():
    model = build(BlipForQuestionAnswering)
    layout = mf.adapter_for(model).layout(model)
    decoder, encoder = "text_decoder.bert.encoder.layer.0", "text_encoder.encoder.layer.0"
    assert layout[f"{decoder}.crossattention.self.key"].stream == "text"  # it reads the question
    assert layout[f"{decoder}.crossattention.self.query"].stream == "answer"
    assert layout[f"{encoder}.crossattention.self.value"].stream == "image"
    assert layout[f"{encoder}.output.dense"].stream == "text"


@torch.no_grad()
def test_retrieval_loss_is_contrastive_plus_matching():
    model, batch = build(BlipForImageTextRetrieval), pairs(count=2)  # the hard negative is the other one
    cosine = model(**batch, use_itm_head=False).itm_score
    itc = (F.cross_entropy(cosine / 0.07, torch.arange(2)) + F.cross_entropy(cosine.T / 0.07, torch.arange(2))) / 2
    marked = batch["input_ids"].clone()
    marked[:, 0] = 49
    right, wrong = (
        model(input_ids=marked, attention_mask=batch["attention_mask"], pixel_values=pixels).itm_score
        for pixels in (batch["pixel_values"], batch["pixel_values"].flip(0))
    )
    logits = torch.cat([right, wrong, wrong])
    itm = F.cross_entropy(logits, torch.tensor([1, 1, 0, 0, 0, 0]))
    torch.testing.assert_close(mf.adapter_for(model).loss(model, batch), itc + itm)


def test_a_batch_of_one_has_no_negatives_and_says_so_once():
    model, given = build(BlipForImageTextRetrieval), pairs(count=1)
    marked = given["input_ids"].clone()
    marked[:, 0] = 49
    with torch.no_grad():
        right = model(**given | {"input_ids": marked}).itm_score
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        losses = [mf.adapter_for(model).loss(model, given) for _ in range(3)]
    torch.testing.assert_close(losses[2], F.cross_entropy(right, torch.ones(1).long()))
    assert [str(warning.message) for warning in said] == [
        "a batch of one pair has no hard negatives: ITM counts the pair alone"
    ]
    with pytest.warns(UserWarning, match="no hard negatives"):
        assert mf.prune(model, "snip", 0.5, [given, pairs(3)]).masks[0.5].sparsity == 0.5


@torch.no_grad()
def test_the_most_similar_wrong_pairs_are_the_negatives():
    model, batch, seen = build(BlipForImageTextRetrieval), pairs(count=4), []
    hook = model.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    mf.adapter_for(model).loss(model, batch)
    hook.remove()
    cosine = model(**batch, use_itm_head=False).itm_score.fill_diagonal_(-2)
    images = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    torch.testing.assert_close(
        seen[-1]["encoder_hidden_states"], images[torch.cat([cosine.argmax(0), torch.arange(4)])]
    )
    rows = torch.cat([torch.arange(4), cosine.argmax(1)])
    assert torch.equal(seen[-1]["input_ids"][:, 1:], batch["input_ids"][rows][:, 1:])


@pytest.mark.parametrize("model_class", CLASSES)
def test_first_tokens_are_enc_and_dec(model_class):
    model, seen = build(model_class), {}
    for name in ("text_encoder", "text_decoder.bert"):
        if hasattr(model, name.split(".")[0]):
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, kwargs, name=name: seen.update({name: kwargs["input_ids"][:, 0]}), with_kwargs=True
            )
    with torch.no_grad():
        mf.adapter_for(model).forward(model, pairs())
    for name, first in seen.items():
        assert (first == {"text_encoder": 49, "text_decoder.bert": 48}[name]).all()


def test_a_token_outside_the_vocabulary_is_named():
    model = build(BlipForConditionalGeneration, bos_token_id=30522)
    with pytest.raises(mf.MultiflowError, match=r"bos_token_id is 30522, .* 50 tokens; set config\."):
        mf.calibrate(model, [pairs()])
    model = build(BlipForImageTextRetrieval, bos_token_id=49)
    with pytest.raises(mf.MultiflowError, match="enc_token_id is 50, .* 50 tokens"):
        mf.calibrate(model, [pairs()])
    model.config.text_config.enc_token_id = 47
    mf.calibrate(model, [pairs()])


def test_the_two_tower_model_of_transformers_leaves_its_cross_attention_dense():
    model = build(BlipModel)
    adapter = mf.adapter_for(model)
    assert set(adapter.layout(model).groups) == {"vision", "text"}
    assert {why for path, why in adapter.dense.items() if "crossattention" in path} == {
        "never used: the model encodes texts alone"
    }


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
@pytest.mark.parametrize("make", [small_model, lambda: build(BlipForQuestionAnswering)])
def test_a_batch_without_a_key_is_named(make, key):
    batch = pairs()
    del batch[key]
    with pytest.raises(mf.MultiflowError, match=f"has no '{key}'; it has .*needs pixel_values"):
        mf.prune(make(), "multiflow", 0.5, [batch])
