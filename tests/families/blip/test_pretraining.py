from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.contrastive import momentum_pairs
from multiflow.families.blip.models import LOSSES, BlipForPretraining, BlipPretrainingConfig
from multiflow.families.blip.parts import shared_names
from multiflow.families.opening import load_model
from multiflow.families.original import original_names
from tests import golden_data
from tests.families.blip.sizes import pairs, small_config, small_model


def assert_golden(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


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
def test_padding_changes_nothing():
    model, batch = small_model(), pairs()
    longer = {key: F.pad(value, (0, 3)) if value.ndim == 2 else value for key, value in batch.items()}
    short, long = copy.deepcopy(model)(**batch), model(**longer)
    for name in LOSSES:
        torch.testing.assert_close(short[name], long[name])


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


def test_negatives_are_a_function_of_the_seed():
    batch = pairs(count=8)
    with torch.no_grad():
        losses = [small_model()(**batch, seed=seed).loss_itm.item() for seed in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert len(set(losses)) > 1


@torch.no_grad()
def test_a_region_batch_and_the_general_one_count_half_each():
    model, general, region = small_model(), pairs(), pairs(count=3, seed=1)
    both = copy.deepcopy(model)(**general, region=region)
    alone, other = model(**general), model(**region)
    for name in ("loss", *LOSSES):
        torch.testing.assert_close(both[name], (alone[name] + other[name]) / 2)


def test_a_batch_of_one_uses_the_pair_alone_and_says_so():
    model, batch = small_model(), pairs(count=1)
    with torch.no_grad(), pytest.warns(UserWarning, match="no hard negatives"):
        out = model(**batch)
    torch.testing.assert_close(out.loss_itm, F.cross_entropy(out.itm_logits, torch.tensor([1])))
    model.calibration_forward(**batch)


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


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
def test_a_missing_key_is_named(key):
    batch = pairs()
    del batch[key]
    for run in (small_model(), small_model().calibration_forward):
        with pytest.raises(MultiflowError, match=f"the batch has no '{key}'; BLIP needs"):
            run(**batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 24, 24)}, "pixel_values has 3 rows and input_ids has 4"),
        ({"pixel_values": torch.zeros(4, 3, 32, 32)}, r"\(4, 3, 32, 32\); this model takes \(images, 3, 24, 24\)"),
        ({"attention_mask": torch.ones(4, 6)}, r"attention_mask has shape \(4, 6\) and input_ids \(4, 7\); pad both"),
        (
            dict.fromkeys(("input_ids", "attention_mask"), torch.ones(4, 17, dtype=torch.long)),
            "input_ids has 17 tokens a text; this model takes at most 16",
        ),
    ],
)
def test_inputs_of_a_wrong_size_are_errors_before_anything_moves(change, message):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MultiflowError, match=message):
        model(**(pairs() | change))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_step_reaches_every_parameter_and_lowers_the_loss():
    model, batch = small_model().train(), pairs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []
    assert losses[-1] < losses[0] - 0.3


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


@torch.no_grad()
def test_the_temperature_is_clamped_in_a_copy():
    model, batch = small_model(), pairs()
    other = copy.deepcopy(model)
    model.temp.fill_(0.5)
    other.temp.fill_(7.0)
    torch.testing.assert_close(model(**batch).loss_itc, other(**batch).loss_itc)
    assert other.temp == 7.0


@torch.no_grad()
def test_bfloat16():
    exact, model = small_model(), small_model().bfloat16()
    out = model(**pairs())  # float32 images are taken, too
    assert out.image_embeds.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, exact(**pairs()).loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("load", [BlipForPretraining.from_pretrained, load_model])
def test_saving_and_loading(tmp_path, load):
    model = small_model()
    model(**pairs())  # so that copies and queues are not the initial ones
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, BlipForPretraining)
    assert not loaded.training
    assert shared_names(loaded) == shared_names(model)
    assert loaded.text_decoder.bert.embeddings is loaded.text_encoder.embeddings
    assert len(shared_names(loaded)) == 4 + 2 * 16 + 2  # embeddings, layers, head
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(**pairs()).loss, model(**pairs()).loss)


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


def test_blip_base_has_the_published_size():
    with torch.device("meta"):
        model = BlipForPretraining(BlipPretrainingConfig())
    layers, sizes = original_names(model), {"vision": 0, "text": 0}
    for name in layers:
        sizes["vision" if name.startswith("vision") else "text"] += model.get_submodule(name).weight.numel()
    assert sizes == {"vision": 84_934_656, "text": 141_557_760}
    assert len(layers) == 216
    assert sum(sizes.values()) == 226_492_416
