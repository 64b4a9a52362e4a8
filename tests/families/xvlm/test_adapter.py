"""The adapters of X-VLM's task models; that of the pretraining model stands in test_families."""

from __future__ import annotations

import pytest
import torch

import multiflow as mf
from tests.families.xvlm.sizes import small_model
from tests.families.xvlm.test_tasks import task_batch, tasks
from tests.families.xvlm.test_vqa import WIDE


@tasks
def test_the_same_layers_are_prunable(task):
    model = small_model(vision=WIDE)
    built = mf.task_model(model, task)
    layout, pretrained = (mf.adapter_for(m).layout(m) for m in (built, model))
    assert {name: layout[name] for name in pretrained} == dict(pretrained)
    more = [layer for name, layer in layout.items() if name not in pretrained]
    assert len(more) == (20 if task == "vqa" else 0)
    assert {layer.group for layer in more} <= {"fusion"}
    assert all(layer.name.startswith("text_decoder.bert.encoder.") for layer in more)


def test_the_decoder_reads_answers_and_looks_at_the_question():
    built = mf.task_model(small_model(vision=WIDE), "vqa")
    layout = mf.adapter_for(built).layout(built)
    decoder, encoder = "text_decoder.bert.encoder.layer.0.", "text_encoder.bert.encoder.layer.1."
    for part in ("attention.self.query", "crossattention.self.query", "output.dense"):
        assert layout[decoder + part].stream == "answer"
        assert layout[encoder + part].stream == "text"
    for part in ("crossattention.self.key", "crossattention.self.value"):
        assert layout[decoder + part].stream == "text"
        assert layout[encoder + part].stream == "image"


@tasks
@pytest.mark.parametrize("method", ["multiflow", "snip"])
def test_a_task_model_can_be_pruned_itself(task, method):
    built = mf.task_model(small_model(vision=WIDE), task)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    result = mf.prune(built, method, 0.5, [task_batch(task)] * 2)
    masks = result.masks[0.5]
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())


def test_padding_of_answers_and_questions_does_not_count():
    built = mf.task_model(small_model(vision=WIDE), "vqa")
    given = task_batch("vqa")
    noisy = dict(given)
    for ids, mask in (("input_ids", "attention_mask"), ("answer_ids", "answer_mask")):
        noisy[ids] = torch.where(given[mask].bool(), given[ids], 7)
    scores = [mf.prune(built, "multiflow", 0.5, [b]).scores for b in (given, noisy)]
    for name in scores[0]:
        torch.testing.assert_close(scores[1][name], scores[0][name], rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("task", "key"), [("retrieval", "input_ids"), ("captioning", "pixel_values"), ("vqa", "answer_mask")]
)
def test_a_batch_without_a_key_is_named(task, key):
    given = task_batch(task)
    del given[key]
    with pytest.raises(mf.MultiflowError, match=f"has no '{key}'; it has "):
        mf.prune(mf.task_model(small_model(), task), "multiflow", 0.5, [given])
