from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from multiflow.families.blip.contrastive import MEMORY, as_buffers, enqueue, follow, momentum_pairs, online_path
from multiflow.families.opening import load_model
from tests.families.blip.sizes import pairs, small_config, small_model


def test_buffers_compute_what_parameters_did():
    module, x = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False)), torch.randn(5, 3)
    before, names = module(x), list(module.state_dict())
    frozen = as_buffers(module)
    assert torch.equal(frozen(x), before)
    assert not list(frozen.parameters())
    assert list(frozen.state_dict()) == names


def test_every_online_parameter_of_the_towers_has_a_copy():
    model = small_model()
    found = momentum_pairs(model)
    towers = (model.vision_model, model.text_encoder, model.vision_proj, model.text_proj)
    assert {id(online) for _, online in found} == {id(p) for tower in towers for p in tower.parameters()}
    assert all(copy.shape == online.shape and copy is not online for copy, online in found)


def test_copies_follow_slowly():
    model = small_model()
    before = [(copy.clone(), online.clone()) for copy, online in momentum_pairs(model)]
    follow(model, 0.75)
    for (copy, online), (old, unchanged) in zip(momentum_pairs(model), before, strict=True):
        torch.testing.assert_close(copy, 0.75 * old + 0.25 * unchanged)
        assert torch.equal(online, unchanged)


def test_a_queue_wraps_round():
    queue, features = torch.zeros(2, 5), torch.arange(1.0, 9.0).reshape(4, 2)
    enqueue(queue, torch.tensor([3]), features)
    assert queue.tolist() == [[5, 7, 0, 1, 3], [6, 8, 0, 2, 4]]


def test_of_more_features_than_a_queue_holds_the_last_ones_stay():
    queue, features = torch.zeros(1, 3), torch.arange(1.0, 8.0)[:, None]
    enqueue(queue, torch.tensor([1]), features)  # 7 lands where the seventh of them falls: (1 + 6) % 3 = 1
    assert queue.tolist() == [[6, 7, 5]]


def test_memory_names_the_buffers_and_no_parameter():
    model = small_model()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in model.state_dict():
        assert bool(re.search(MEMORY, name)) == (name not in parameters), name


@pytest.mark.parametrize("left_out", [MEMORY, "_m\\.", "queue"], ids=["all", "copies", "queues"])
def test_a_file_may_leave_out_what_is_remembered(tmp_path, left_out):
    """Without a warning the missing copies equal the stored weights, and the missing queues are fresh."""
    model = small_model()
    model(**pairs())
    kept = {name: value for name, value in model.state_dict().items() if not re.search(left_out, name)}
    model.save_pretrained(tmp_path, state_dict=dict(kept))
    loaded = load_model(tmp_path)  # a warning would be an error here
    fresh = type(model)(small_config())
    for name, value in loaded.state_dict().items():
        if name in kept:
            assert torch.equal(value, kept[name]), name
        elif "_m." not in name:
            assert torch.equal(value, fresh.state_dict()[name]), name
    if any("_m." in name for name in kept):
        assert not all(torch.equal(copy, online) for copy, online in momentum_pairs(loaded))
    else:
        assert all(torch.equal(copy, online) for copy, online in momentum_pairs(loaded))


def test_the_path_of_a_copy_leads_to_what_it_follows():
    model = small_model()
    online = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        if "_m." in name:
            assert online[online_path(name)].shape == value.shape
            assert online_path(name) != name
    assert all(online_path(name) == name for name in online)
    assert online_path("vision_proj_m") == "vision_proj"
    assert online_path("text_encoder_more.x_m.y") == "text_encoder_more.x_m.y"
