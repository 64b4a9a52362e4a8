from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families import original_names
from multiflow.families.task_models import resize_positions
from multiflow.families.xvlm.models import XVLMForCaptioning, XVLMForRetrieval, XVLMForVQA
from tests import golden_data
from tests.families.xvlm.sizes import pairs, small_model
from tests.families.xvlm.test_vqa import WIDE, batch

CLASSES = {"retrieval": XVLMForRetrieval, "captioning": XVLMForCaptioning, "vqa": XVLMForVQA}
KEYS = ("pixel_values", "input_ids", "attention_mask")
tasks = pytest.mark.parametrize("task", CLASSES)


def task_batch(task):
    if task == "vqa":
        return batch()
    given = {key: value for key, value in pairs(3).items() if key in KEYS}
    return given | ({"labels": given["input_ids"]} if task == "captioning" else {})


@tasks
def test_every_prunable_layer_has_its_place_and_its_weight(task):
    model = golden_data.model("xvlm")
    built, places = mf.build_task_model(model, task)
    assert type(built) is CLASSES[task]
    assert not built.training
    assert list(places) == list(original_names(model))
    for layer, paths in places.items():
        number = int(layer.split(".")[4]) if layer.startswith("text_encoder") else -1
        decoder = layer.replace(
            f"text_encoder.bert.encoder.layer.{number}", f"text_decoder.bert.encoder.layer.{number - 2}"
        )
        assert paths == ((layer, decoder) if task == "vqa" and number >= 2 else (layer,))
        for path in paths:
            weight = built.get_submodule(path).weight
            assert torch.equal(weight, model.get_submodule(layer).weight)
            assert weight.data_ptr() != model.get_submodule(layer).weight.data_ptr()


@tasks
def test_all_that_the_task_model_shares_by_name_is_copied(task):
    model, before = small_model(vision=WIDE), small_model(vision=WIDE).state_dict()
    built = mf.task_model(model, task)
    own = built.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in own.keys() & before.keys())
    assert {name for name in own if name not in before} == {name for name in own if name.startswith("text_decoder")}
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_decoder_can_be_left_out_of_the_places():
    _, places = mf.build_task_model(golden_data.model("xvlm"), "vqa", mask_decoder=False)
    assert all(paths == (layer,) for layer, paths in places.items())


def test_what_is_drawn_anew_has_no_place():
    model = small_model()  # image and text of different widths
    _, places = mf.build_task_model(model, "vqa")
    cross = "text_encoder.bert.encoder.layer.1.crossattention"
    assert places[f"{cross}.self.key"] == (f"{cross}.self.key",)
    assert len(places[f"{cross}.self.query"]) == 2


@tasks
def test_another_resolution(task):
    model = small_model()
    built = mf.task_model(model, task, image_size=40)
    expected = resize_positions(model.vision_encoder.pos_embed.weight, 5)
    assert torch.equal(built.vision_encoder.pos_embed.weight, expected)
    assert built.config.image_size == 40
    given = task_batch(task)
    assert torch.isfinite(built(**given | {"pixel_values": torch.randn(3, 3, 40, 40)}).loss)
    with pytest.raises(MultiflowError, match="image_size is 30; .* multiple of patch_size"):
        mf.task_model(model, task, image_size=30)


@tasks
@torch.no_grad()
def test_a_task_model_goes_on_with_its_task_at_another_resolution(task):
    first = mf.task_model(small_model(vision=WIDE), task)
    for parameter in first.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    again = mf.task_model(first, task)
    assert torch.equal(again(**task_batch(task)).loss, first(**task_batch(task)).loss)
    larger, places = mf.build_task_model(first, task, image_size=40)
    assert larger.config.image_size == 40
    assert all(paths == (layer,) for layer, paths in places.items())
    assert any(layer.startswith("text_decoder") for layer in places) == (task == "vqa")


def test_captioning_keeps_its_options_when_it_goes_on():
    first = mf.task_model(small_model(), "captioning", eos_token_id=9, label_smoothing=0.0)
    again = mf.task_model(first, "captioning", pad_token_id=0)
    assert (again.config.eos_token_id, again.config.pad_token_id, again.config.label_smoothing) == (9, 0, 0.0)
    assert (
        again.text_encoder.cls.predictions.decoder.weight is again.text_encoder.bert.embeddings.word_embeddings.weight
    )
