from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.blip.modeling_blip import BlipEncoderLayer

from multiflow.families.blip import parts
from multiflow.families.blip.parts import DropPathLayer, QuestionAttention
from tests.families.blip.sizes import small_config


@pytest.fixture
def attention():
    torch.manual_seed(0)
    layer = parts.answer_decoder(small_config()).eval().bert.encoder.layer[1].crossattention
    assert isinstance(layer, QuestionAttention)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


@torch.no_grad()
def test_masked_tokens_of_a_question_are_as_if_they_were_not_there(attention):
    answers, question = torch.randn(2, 3, 32), torch.randn(2, 6, 32)
    hidden = torch.zeros(2, 1, 1, 6)
    hidden[1, ..., 4:] = torch.finfo(torch.float32).min
    out, _ = attention(answers, hidden, question, None)
    torch.testing.assert_close(out[:1], attention(answers[:1], None, question[:1], None)[0])
    torch.testing.assert_close(out[1:], attention(answers[1:], None, question[1:, :4], None)[0])
    assert not torch.allclose(out[1:], attention(answers[1:], None, question[1:], None)[0], atol=1e-3)


@torch.no_grad()
def test_several_answers_to_a_question_are_each_as_if_alone(attention):
    answers, question = torch.randn(6, 4, 32), torch.randn(2, 5, 32)
    hidden = torch.zeros(2, 1, 1, 5)
    hidden[0, ..., 3:] = torch.finfo(torch.float32).min
    out, _ = attention(answers, hidden, question, None)
    for i in range(6):
        alone, _ = attention(answers[i : i + 1], hidden[i // 3, None], question[i // 3, None], None)
        torch.testing.assert_close(out[i : i + 1], alone)


def tower(drop_path: float):
    torch.manual_seed(0)
    model = parts.vision_model(small_config(vision={**small_config().vision, "layers": 3}), drop_path)
    return model


def test_rates_of_drop_path_rise_from_layer_to_layer_and_names_stay():
    plain, dropping = tower(0.0), tower(0.2)
    assert all(type(layer) is BlipEncoderLayer for layer in plain.encoder.layers)
    assert [layer.rate for layer in dropping.encoder.layers] == pytest.approx([0.0, 0.1, 0.2])
    assert list(plain.state_dict()) == list(dropping.state_dict())


@torch.no_grad()
def test_drop_path_does_nothing_outside_of_training():
    plain, dropping = tower(0.0).eval(), tower(0.5).eval()
    dropping.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 24, 24)
    assert torch.equal(plain(pixels).last_hidden_state, dropping(pixels).last_hidden_state)


@torch.no_grad()
def test_in_training_each_branch_is_left_out_of_a_share_of_the_images():
    torch.manual_seed(0)
    layer = DropPathLayer(tower(0.0).config, 0.25).train()
    x = torch.randn(1, 10, 24)
    out = layer(x.expand(2000, -1, -1))
    sure = copy.deepcopy(layer)
    sure.rate = 0.0
    attended = sure.self_attn(hidden_states=sure.layer_norm1(x))[0] / 0.75
    kinds = []
    for first in (x, x + attended):  # the two branches, each there or not
        kinds += [first, first + sure.mlp(sure.layer_norm2(first)) / 0.75]
    nearest = torch.stack([(out - kind).abs().amax((1, 2)) for kind in kinds])
    assert nearest.min(0).values.max() < 1e-5
    shares = nearest.argmin(0).bincount(minlength=4) / 2000
    torch.testing.assert_close(shares, torch.tensor([1 / 16, 3 / 16, 3 / 16, 9 / 16]), rtol=0, atol=0.04)
