from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    Dinov2Config,
    Dinov2ForImageClassification,
)

import multiflow as mf
from multiflow.pruners import PRUNERS
from tests import golden_data
from tests.models.blip.sizes import pairs, small_model
from tests.small import QUICK

TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT |= {"vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 48, "initializer_range": 0.2}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
VISION |= {"image_size": 24, "patch_size": 8, "initializer_range": 0.2}
CLASSES = [BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering]

METHODS = {
    "omp": ("magnitude", 1),
    "omp_local": ("magnitude-layer", 1),
    "omp_modality": ("magnitude-modality", 1),
    "l2": ("l2", 1),
    "lamp": ("lamp", 1),
    "multiflow_tied": ("multiflow", 2),
}


def build(model_class, **text):
    torch.manual_seed(0)
    config = BlipConfig(text_config=TEXT | text, vision_config=VISION, image_text_hidden_size=12)
    return model_class(config).eval()


def questions(count: int = 4) -> dict[str, torch.Tensor]:
    """Questions with answers of 4 tokens at most, padded."""
    labels = torch.randint(3, 48, (count, 4), generator=torch.Generator().manual_seed(5))
    return pairs(count) | {"labels": labels.masked_fill(torch.arange(4) > 3 - torch.arange(count)[:, None] % 2, -100)}


@pytest.fixture(scope="module")
def golden():
    return golden_data.model("blip")


@pytest.mark.parametrize("tag", METHODS)
def test_masks_equal_the_published_ones(golden, tag):
    names = mf.original_names(golden)
    method, tolerance = METHODS[tag]
    result = mf.prune(golden, method, [0.63, 0.75, 0.9], golden_data.batches("blip")[:4])
    for sparsity, masks in result.masks.items():
        expected = golden_data.masks("blip")[tag][sparsity]
        assert {names[name] for name in masks} == set(expected)
        for name, mask in masks.items():
            assert int((mask != expected[names[name]]).sum()) <= tolerance, (sparsity, name)


def test_statistics_sum_over_encoder_and_decoder(golden):
    names, values = mf.original_names(golden), golden_data.tensors("blip", "values")
    stats = mf.calibrate(golden, golden_data.batches("blip")[:4])["input_norm"]
    for name, norm in stats.items():
        ratio = norm.double().square() / values[f"multiflow_tied_input_sqsum/{names[name]}"].double()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_gradients_run_on_over_the_batches_as_published(golden):
    """The mean gradient of four batches, momentum copies and queues carried on, gives the published SNIP scores."""
    model, names, values = golden_data.model("blip"), mf.original_names(golden), golden_data.tensors("blip", "values")
    adapter = mf.adapter_for(model)
    weights = {name: model.get_submodule(name).weight for name in adapter.layout(model)}
    for batch in golden_data.batches("blip")[:4]:
        (adapter.loss(model, batch) / 4).backward()
    scores = {name: (weight * weight.grad).abs().detach() for name, weight in weights.items()}
    total = sum(score.sum() for score in scores.values())
    for name, score in scores.items():
        expected = values[f"snip/{names[name]}"]
        torch.testing.assert_close(score / total, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_the_layout_of_the_pretraining_model(golden):
    layout = mf.adapter_for(golden).layout(golden)
    names = mf.original_names(golden)
    assert {names[name]: layer.shape for name, layer in layout.items()} == golden_data.prunable("blip")
    assert {group: sum(x.size for x in layers) for group, layers in layout.groups.items()} == {
        "vision": 98304, "text": 196608
    }  # fmt: skip
    key = layout["text_encoder.encoder.layer.0.crossattention.self.key"]
    assert (key.stream, key.aliases) == ("image", ("text_decoder.bert.encoder.layer.0.crossattention.self.key",))
    own = layout["text_decoder.bert.encoder.layer.0.attention.output.dense"]
    assert (own.stream, own.aliases) == ("text", ())
    assert layout["vision_model.encoder.layers.0.self_attn.qkv"].stream is None


@torch.no_grad()
def test_the_loss_of_the_pretraining_model_has_hard_targets_and_counts_regions_half():
    expected = golden_data.tensors("blip", "expected")
    batch, region = golden_data.batches("blip")[:2]
    model = golden_data.model("blip")
    model.config.alpha = 0.4  # training mixes the momentum model in, calibration does not
    loss = mf.adapter_for(model).loss
    general = loss(copy.deepcopy(model), batch)
    torch.testing.assert_close(general, sum(expected[f"loss_{x}"] for x in ("itc", "itm", "lm")), rtol=1e-4, atol=0)
    other = copy.deepcopy(model)
    both = [loss(other, batch), loss(other, region)]
    torch.testing.assert_close(loss(model, batch | {"region": region}), torch.stack(both).mean())


def test_keys_of_other_models_in_a_batch_do_no_harm():
    model, batch = small_model(), pairs()
    more = batch | {"mlm_input_ids": batch["input_ids"], "mlm_positions": torch.zeros(4, 1)}
    assert torch.equal(mf.adapter_for(model).loss(copy.deepcopy(model), more), mf.adapter_for(model).loss(model, batch))
    mf.calibrate(model, [more])


@pytest.mark.parametrize("method", PRUNERS)
def test_every_pruner_leaves_the_pretraining_model_as_it_was(method):
    model = small_model().train()
    before = copy.deepcopy(model.state_dict())
    batches = [pairs(), pairs(3, seed=1), pairs(2, seed=2)]
    result = mf.prune(model, method, [0.5, 0.75], batches, **QUICK.get(method, {}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.apply_(model, 0.75)
    decoder, encoder = model.text_decoder.bert.encoder.layer[0], model.text_encoder.encoder.layer[0]
    assert decoder.output.dense.weight is encoder.output.dense.weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "_m." in name)


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
    assert math.isfinite(mf.adapter_for(model).loss(model, pairs(count=1)))


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
    with pytest.raises(mf.MultiflowError, match=r"bos_token_id is 30522, but the model embeds 50 tokens; set config\."):
        mf.calibrate(model, [pairs()])
    model = build(BlipForImageTextRetrieval, bos_token_id=49)
    with pytest.raises(mf.MultiflowError, match=r"enc_token_id is 50, but the model embeds 50 tokens"):
        mf.calibrate(model, [pairs()])
    model.config.text_config.enc_token_id = 47
    mf.calibrate(model, [pairs()])


def test_the_two_tower_model_of_transformers_is_refused():
    with pytest.raises(mf.MultiflowError, match="a BlipModel is no BLIP that can be pruned.*BlipForImageTextRetrieval"):
        mf.adapter_for(build(BlipModel))


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
@pytest.mark.parametrize("make", [small_model, lambda: build(BlipForQuestionAnswering)])
def test_a_batch_without_a_key_is_named(make, key):
    batch = pairs()
    del batch[key]
    with pytest.raises(mf.MultiflowError, match=f"has no '{key}'; it has .*needs pixel_values"):
        mf.prune(make(), "multiflow", 0.5, [batch])


def test_dinov2_from_a_local_folder(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, image_size=32, patch_size=16, num_labels=3)
    Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    model = mf.load_model(tmp_path)
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == {"vision": 12}
    assert list(mf.original_names(model)) == list(layout)
    batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 1, 2])}
    assert mf.prune(model, "multiflow", 0.5, [batch]).masks[0.5].sparsity == 0.5
    gradients = torch.autograd.grad(adapter.loss(model, batch), [model.get_submodule(x).weight for x in layout])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
