from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from multiflow.families import original_names
from multiflow.families.blip.contrastive import momentum_pairs
from multiflow.families.blip.models import LOSSES, BlipForPretraining
from multiflow.families.blip.parts import shared_names
from multiflow.families.opening import load_model
from tests import golden_data
from tests.families.blip.sizes import pairs, small_config, small_model
from tests.golden_data import assert_golden


@torch.no_grad()
def test_the_forward_matches_the_golden_outputs():
    model, expected = golden_data.model("blip"), golden_data.tensors("blip", "expected")
    out = model(**golden_data.batches("blip")[0])
    for name, value in expected.items():
        assert_golden(out[name] if name in out else getattr(model, name.removeprefix("after_one_step.")), value)
    torch.testing.assert_close(out.loss, out.loss_itc + out.loss_itm + out.loss_lm)


@torch.no_grad()
def test_stacking_the_pairs_changes_nothing():
    """The one grounded pass over stacked rows equals encoding the pairs by themselves."""
    model, batch = small_model(), pairs()
    images, ids, mask = model.encode_image(batch["pixel_values"]), batch["input_ids"], batch["attention_mask"]
    out = model(**batch)
    torch.testing.assert_close(out.cross_embeds, model.ground(ids, mask, images))
    torch.testing.assert_close(out.itm_logits, model.itm_head(out.cross_embeds[:, 0]))
    torch.testing.assert_close(out.decoder_logits, model.text_decoder.cls(model.decode(ids, mask, images)))


@torch.no_grad()
def test_the_decoder_is_causal_and_the_encoder_is_not():
    model, batch = small_model(), pairs(count=2)
    images, mask = model.encode_image(batch["pixel_values"]), torch.ones_like(batch["input_ids"])
    changed = batch["input_ids"].clone()
    changed[:, 4] = 7
    for run, same in ((model.decode, True), (model.ground, False)):
        before, after = run(batch["input_ids"], mask, images), run(changed, mask, images)
        assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6) == same
        assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


@torch.no_grad()
def test_first_tokens_are_set_and_the_batch_is_left_alone():
    model, batch = small_model(), pairs()
    images, mask = model.encode_image(batch["pixel_values"]), batch["attention_mask"]
    given = batch["input_ids"].clone()
    for run, token in ((model.ground, model.config.enc_token_id), (model.decode, model.config.bos_token_id)):
        marked = given.clone()
        marked[:, 0] = token
        assert torch.equal(run(given, mask, images), run(marked, mask, images))
    assert torch.equal(given, batch["input_ids"])
    assert not torch.equal(model.ground(given, mask, images)[:, 0], model.decode(given, mask, images)[:, 0])


@torch.no_grad()
def test_a_forward_is_a_step_of_momentum_and_queues():
    model, batch = small_model(), pairs()
    before = [(slow.clone(), online.clone()) for slow, online in momentum_pairs(model)]
    model.queue_ptr.fill_(8)
    queues = model.image_queue.clone(), model.text_queue.clone()
    model(**batch)
    for (slow, online), (old, same) in zip(momentum_pairs(model), before, strict=True):
        torch.testing.assert_close(slow, 0.995 * old + 0.005 * same)
        assert torch.equal(online, same)
    # the features are those of the copies as they are now; 4 of them into 10 places from the 8th on wrap round
    image = F.normalize(model.vision_proj_m(model.vision_model_m(batch["pixel_values"]).last_hidden_state[:, 0]), dim=1)
    states = model.text_encoder_m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    text = F.normalize(model.text_proj_m(states.last_hidden_state[:, 0]), dim=1)
    for queue, old, features in zip((model.image_queue, model.text_queue), queues, (image, text), strict=True):
        torch.testing.assert_close(queue[:, [8, 9, 0, 1]], features.T)
        assert torch.equal(queue[:, 2:8], old[:, 2:8])
    assert model.queue_ptr.tolist() == [2]


@torch.no_grad()
def test_buffers_put_back_undo_a_forward():
    model, batch = small_model(), pairs()
    before = copy.deepcopy(model.state_dict())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first = model(**batch).loss
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(model(**batch).loss, first)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(**batch).loss, first)


@torch.no_grad()
def test_only_a_forward_leaves_traces():
    model, batch = small_model(), pairs()
    before = copy.deepcopy(model.state_dict())
    model.calibration_forward(**batch, region=pairs(seed=1))
    model.text_features(model.encode_text(batch["input_ids"], batch["attention_mask"]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_alpha_mixes_the_opinion_of_the_momentum_model_in():
    alphas = {alpha: small_model(alpha=0.25)(**pairs(), alpha=alpha).loss_itc for alpha in (0.0, 0.25, 0.5, None)}
    assert alphas[None] == alphas[0.25]
    torch.testing.assert_close(alphas[0.25], (alphas[0.0] + alphas[0.5]) / 2)  # linear in alpha
    assert not torch.isclose(alphas[0.0], alphas[0.5])


@torch.no_grad()
def test_the_contrastive_loss_against_its_formula():
    model, batch = small_model(), pairs()
    queue = model.text_queue.clone()
    out = copy.deepcopy(model)(**batch, alpha=0.0)
    start = model.queue_ptr.clone()
    model(**batch)
    columns = (start + torch.arange(4)) % 10
    sides = []
    for features, slow, old in (
        (out.image_feat, model.text_queue[:, columns], queue),
        (out.text_feat, model.image_queue[:, columns], small_model().image_queue),
    ):
        sides.append(F.cross_entropy(features @ torch.cat([slow, old], 1) / model.temp, torch.arange(4)))
    torch.testing.assert_close(out.loss_itc, (sides[0] + sides[1]) / 2)


@torch.no_grad()
def test_a_region_batch_and_the_general_one_count_half_each():
    model, general, region = small_model(), pairs(), pairs(count=3, seed=1)
    both = copy.deepcopy(model)(**general, region=region)
    alone, other = model(**general), model(**region)
    for name in ("loss", *LOSSES):
        torch.testing.assert_close(both[name], (alone[name] + other[name]) / 2)


def test_calibration_runs_every_layer_as_often_as_it_is_used():
    model, calls = small_model(), []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    with torch.no_grad():
        model.calibration_forward(**pairs())
    expected = {name: 1 + (".crossattention." in name or ".attention." not in name) for name in original_names(model)}
    expected |= {name: 1 for name in expected if name.startswith("vision_model.")}
    assert {name: calls.count(name) for name in expected} == expected
    assert not any("_m." in path or ".cls" in path or "_proj" in path for path in calls)


def test_gradients_of_a_shared_weight_sum_over_its_users():
    model, batch, path = small_model(), pairs(), "encoder.layer.0.intermediate.dense"
    shared = model.text_encoder.get_submodule(path).weight
    apart = copy.deepcopy(model)
    (whole,) = torch.autograd.grad(model(**batch).loss, [shared])
    layer = copy.deepcopy(apart.text_encoder.encoder.layer[0].intermediate)
    apart.text_decoder.bert.encoder.layer[0].intermediate = layer  # now the decoder has one of its own
    weights = [apart.text_encoder.get_submodule(path).weight, layer.dense.weight]
    encoder, decoder = torch.autograd.grad(apart(**batch).loss, weights)
    assert encoder.abs().max() > 0
    assert decoder.abs().max() > 0
    torch.testing.assert_close(whole, encoder + decoder)


def test_initial_weights():
    torch.manual_seed(0)
    model = BlipForPretraining(small_config())
    assert model.temp.item() == pytest.approx(0.07)
    assert all(torch.equal(slow, online) for slow, online in momentum_pairs(model))
    for queue in (model.image_queue, model.text_queue):
        torch.testing.assert_close(queue.norm(dim=0), torch.ones(10))
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif name != "temp":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.4), name


def test_what_is_shared_stays_shared_through_a_folder(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert shared_names(loaded) == shared_names(model)
    assert loaded.text_decoder.bert.embeddings is loaded.text_encoder.embeddings
    assert len(shared_names(loaded)) == 4 + 2 * 16 + 2  # embeddings, layers, head
