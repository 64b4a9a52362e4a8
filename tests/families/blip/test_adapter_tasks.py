from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import multiflow as mf
from multiflow.tasks.task_model import task_model
from tests.families.blip.sizes import pairs, questions, small_model

BATCHES = {"retrieval": pairs, "captioning": pairs, "vqa": questions}
COUNTS = {
    "retrieval": {"vision": 8, "text": 20},
    "captioning": {"vision": 8, "text": 20},
    "vqa": {"vision": 8, "text": 40},
}


@pytest.fixture(params=list(BATCHES))
def task(request):
    return request.param


def test_layers_losses_and_statistics(task):
    model = task_model(small_model(), task)
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == COUNTS[task]
    assert set(mf.original_names(model)) == set(layout)
    batches = [BATCHES[task](count, seed=count) for count in (4, 3)]
    loss = adapter.loss(model, batches[0])
    gradients = torch.autograd.grad(loss, [model.get_submodule(name).weight for name in layout])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("multiflow", "snip"):
        assert mf.prune(model, method, 0.75, batches).masks[0.75].sparsity == pytest.approx(0.75, abs=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padding_does_not_count_in_statistics(task):
    model, batch = task_model(small_model(), task), BATCHES[task]()
    longer = {name: F.pad(value, (0, 3)) if value.ndim == 2 else value for name, value in batch.items()}
    short, long = (mf.calibrate(model, [given])["input_norm"] for given in (batch, longer))
    for name in short:
        torch.testing.assert_close(short[name], long[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_losses_are_those_of_the_models():
    model, batch = task_model(small_model(), "captioning"), pairs()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = mf.adapter_for(model).loss
    torch.testing.assert_close(loss(model, batch), model(**batch, labels=labels).loss)
    assert not torch.isclose(loss(model, {**batch, "labels": labels.roll(1)}), loss(model, batch))
    model = task_model(small_model(), "vqa")
    torch.testing.assert_close(mf.adapter_for(model).loss(model, questions()), model(**questions()).loss)
    models, given = (task_model(small_model(), "retrieval"), task_model(small_model(), "retrieval")), pairs()
    given["image_ids"] = torch.tensor([1, 1, 2, 3])
    torch.testing.assert_close(mf.adapter_for(models[0]).loss(models[0], given), models[1](**given, alpha=0.0).loss)


def test_the_streams_of_question_answering():
    model = task_model(small_model(), "vqa")
    layout = mf.adapter_for(model).layout(model)
    decoder, encoder = "text_decoder.bert.encoder.layer.0", "text_encoder.encoder.layer.0"
    assert layout[f"{decoder}.crossattention.self.key"].stream == "question"
    assert layout[f"{decoder}.crossattention.self.query"].stream == "answer"
    assert layout[f"{encoder}.crossattention.self.value"].stream == "image"
    assert layout[f"{encoder}.output.dense"].stream == "text"


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
def test_a_batch_without_a_key_is_named(task, key):
    batch = BATCHES[task]()
    del batch[key]
    with pytest.raises(mf.MultiflowError, match=f"has no '{key}'; it has .*needs pixel_values"):
        mf.prune(task_model(small_model(), task), "multiflow", 0.5, [batch])


def test_questions_without_answers_are_named():
    batch = questions()
    del batch["answer_mask"]
    with pytest.raises(mf.MultiflowError, match="has no 'answer_mask'"):
        mf.prune(task_model(small_model(), "vqa"), "multiflow", 0.5, [batch])
