from __future__ import annotations

import copy

import pytest
import torch

import multiflow as mf
from multiflow.families.blip.contrastive import momentum_pairs, online_path
from multiflow.families.blip.models import BlipForRetrieval
from multiflow.families.blip.tasks import captioning, retrieval, vqa
from multiflow.families.task_models import resize_positions
from multiflow.tasks.task_model import build_task_model, task_masks, task_model
from tests import golden_data
from tests.families.blip.sizes import pairs, questions, small_model

BUILDERS = {"retrieval": retrieval, "captioning": captioning, "vqa": vqa}
BATCHES = {
    "retrieval": lambda: {**pairs(), "image_ids": torch.tensor([0, 1, 1, 2])},
    "captioning": lambda: {**pairs(), "labels": pairs()["input_ids"]},
    "vqa": questions,
}
SHARED = "text_encoder.encoder.layer.1.intermediate.dense"
IN_DECODER = SHARED.replace("text_encoder", "text_decoder.bert")
ENCODER, DECODER = (f"{part}.encoder.layer.0.attention.self.query" for part in ("text_encoder", "text_decoder.bert"))
VISION = "vision_model.encoder.layers.0.self_attn.qkv"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            "retrieval",
            {
                VISION: (VISION, VISION.replace("model", "model_m")),
                SHARED: (SHARED, SHARED.replace("encoder", "encoder_m", 1)),
                ENCODER: (ENCODER, ENCODER.replace("encoder", "encoder_m", 1)),
                DECODER: (),
            },
        ),
        ("captioning", {VISION: (VISION,), SHARED: (IN_DECODER,), ENCODER: (), DECODER: (DECODER,)}),
        ("vqa", {VISION: (VISION,), SHARED: (SHARED, IN_DECODER), ENCODER: (ENCODER,), DECODER: (DECODER,)}),
    ],
)
def test_places(task, expected):
    model = golden_data.model("blip")
    built, places = BUILDERS[task](model)
    assert list(places) == list(mf.adapter_for(model).layout(model))
    assert {name: places[name] for name in expected} == expected
    goals = [path for paths in places.values() for path in paths]
    assert len(set(goals)) == len(goals)
    layout = mf.adapter_for(built).layout(built)
    assert set(layout) == {online_path(path) for path in goals}  # every prunable layer has a mask
    for name, paths in places.items():
        for path in paths:
            assert torch.equal(built.get_submodule(path).weight, model.get_submodule(name).weight)


@pytest.mark.parametrize("task", BUILDERS)
def test_every_weight_is_a_copy_of_its_own(task):
    pretrained = small_model()
    before = copy.deepcopy(pretrained.state_dict())
    model, _ = BUILDERS[task](pretrained)
    assert not model.training
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(0)
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state_dict().items())


@pytest.mark.parametrize("task", BUILDERS)
def test_another_resolution(task):
    pretrained = small_model()
    model, _ = BUILDERS[task](pretrained, image_size=40)
    assert model.config.image_size == 40
    assert pretrained.config.image_size == 24
    name = "embeddings.position_embedding"
    old, new = (m.vision_model.get_parameter(name)[0] for m in (pretrained, model))
    assert torch.equal(new, resize_positions(old, 5))
    if task == "retrieval":
        assert torch.equal(model.vision_model_m.get_buffer(name)[0], new)
    batch = BATCHES[task]()
    batch["pixel_values"] = torch.randn(len(batch["pixel_values"]), 3, 40, 40)
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("task", BUILDERS)
def test_a_task_model_goes_on_to_its_own_task(task):
    first = task_model(small_model(), task)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    again, places = build_task_model(first, task, image_size=32)
    layout = mf.adapter_for(first).layout(first)
    assert list(places) == list(layout)
    assert all(places[name][0] == name for name in layout)
    changed = "vision_model.embeddings.position_embedding"
    assert all(torch.equal(p, first.get_parameter(n)) for n, p in again.named_parameters() if n != changed)


def test_where_the_towers_differ_in_width_the_answers_read_questions_with_new_weights():
    pretrained = small_model()
    torch.manual_seed(3)
    model, places = vqa(pretrained)
    cross = "encoder.layer.0.crossattention.self"
    new, old = (m.text_decoder.bert.get_submodule(f"{cross}.key").weight for m in (model, pretrained))
    assert new.shape == (32, 32)
    assert old.shape == (32, 24)
    assert new.std().item() == pytest.approx(0.02, rel=0.2)
    assert places[f"text_encoder.{cross}.key"] == (f"text_encoder.{cross}.key",)
    query = f"text_encoder.{cross}.query"
    assert places[query] == (query, query.replace("text_encoder", "text_decoder.bert"))


@pytest.mark.parametrize("task", BUILDERS)
def test_masks_follow_every_weight(task):
    pretrained = golden_data.model("blip")
    masks = mf.prune(pretrained, "magnitude", sparsity=0.6).masks[0.6]
    dense, places = build_task_model(pretrained, task)
    sparse = task_model(pretrained, task, masks)
    moved = task_masks(masks, places, dense)
    assert list(moved) == list(mf.adapter_for(dense).layout(dense))
    for name, paths in places.items():
        for path in paths:
            weight = sparse.get_submodule(path).weight
            expected = pretrained.get_submodule(name).weight.masked_fill(~masks[name], 0.0)
            assert torch.equal(weight, expected), path
    if task == "retrieval":  # in training the copies stay as sparse as what they follow
        assert isinstance(sparse, BlipForRetrieval)
        batch = golden_data.batches("blip")[0]
        with mf.keep_sparse(sparse, moved):
            sparse.train()(**batch).loss.backward()
            torch.optim.SGD(sparse.parameters(), lr=0.1).step()
            sparse(**batch)
        copies = {id(online): slow for slow, online in momentum_pairs(sparse)}
        for name in moved:
            slow = copies[id(sparse.get_submodule(name).weight)]
            assert not slow[~moved[name]].any()
            assert slow[moved[name]].any()


def test_options_and_sizes_reach_the_config():
    pretrained = small_model(temp=0.2)
    model, _ = retrieval(pretrained, queue_size=6, momentum=0.9, alpha=0.1)
    assert (model.config.queue_size, model.config.momentum, model.config.alpha) == (6, 0.9, 0.1)
    assert model.config.temp == 0.2
    assert model.image_queue.shape == (12, 6)
    assert model.temp == pretrained.temp
    captioner, _ = captioning(pretrained, eos_token_id=3, pad_token_id=1)
    assert (captioner.config.eos_token_id, captioner.config.pad_token_id) == (3, 1)
    assert captioning(captioner, image_size=32)[0].config.eos_token_id == 3
    assert captioning(pretrained)[0].config.eos_token_id is None
    assert vqa(pretrained, drop_path=0.0)[0].config.drop_path == 0
    assert vqa(pretrained)[0].config.drop_path == 0.1


def test_drop_path_is_a_share():
    with pytest.raises(mf.MultiflowError, match="drop_path is 1.0; .* less than 1"):
        vqa(small_model(), drop_path=1.0)
