from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from multiflow.base.errors import MultiflowError
from multiflow.families import original_names
from multiflow.families.xvlm.models import LOSSES, XVLMConfig, XVLMForPretraining
from tests import golden_data
from tests.families.xvlm.sizes import pairs, regions, small_model
from tests.golden_data import assert_golden

GENERAL = ["image_embeds", "text_embeds", "cross_embeds", "image_feat", "text_feat", "itm_logits", "bbox", *LOSSES[:3]]


def decoder_is_tied(model):
    return (
        model.text_encoder.cls.predictions.decoder.weight is model.text_encoder.bert.embeddings.word_embeddings.weight
    )


@pytest.fixture(scope="module")
def golden():
    return golden_data.model("xvlm")


@torch.no_grad()
def test_the_forward_matches_the_golden_outputs(golden):
    expected, out = golden_data.tensors("xvlm", "expected"), golden(**golden_data.batches("xvlm")[0])
    for name in GENERAL:
        assert_golden(out[name], expected[name])
    assert out.loss_bbox is None
    torch.testing.assert_close(out.loss, out.loss_itc + out.loss_itm + out.loss_mlm)


@torch.no_grad()
def test_the_region_forward_matches_the_golden_outputs(golden):
    expected, batch = golden_data.tensors("xvlm", "expected"), golden_data.region_batch()
    out = golden(**batch)
    for name in ["image_embeds", *LOSSES]:
        assert_golden(out[name], expected[f"region_{name}"])
    index = batch["image_index"]
    stacked = golden.vision_encoder(batch["pixel_values"], index, batch["patch_mask"])
    assert_golden(stacked[len(index) :][index], expected["region_image_embeds_full"])


@torch.no_grad()
def test_a_region_batch_and_the_general_one_count_half_each(golden):
    general, region = golden_data.batches("xvlm")[0], golden_data.region_batch()
    alone, boxed, both = golden(**general), golden(**region), golden(**general, region=region)
    torch.testing.assert_close(both.loss, (alone.loss + boxed.loss) / 2)
    torch.testing.assert_close(both.loss_itm, (alone.loss_itm + boxed.loss_itm) / 2)
    torch.testing.assert_close(both.loss_giou, boxed.loss_giou / 2)
    torch.testing.assert_close(both.loss, sum(both[name] for name in LOSSES))
    assert torch.equal(both.cross_embeds, alone.cross_embeds)


@torch.no_grad()
def test_stacking_the_pairs_changes_nothing():
    """The one fusion pass over stacked rows equals fusing each kind of pair by itself."""
    model, batch = small_model(), regions()
    out = model(**batch, seed=3)
    mask, index, patches = batch["attention_mask"], batch["image_index"], batch["patch_mask"]
    copies, whole = model.vision_encoder(batch["pixel_values"], index, patches).split([len(index), 2])
    texts, masked = (model.encode_text(batch[key], mask) for key in ("input_ids", "mlm_input_ids"))
    pair = model.fuse(texts, mask, copies, patches)
    torch.testing.assert_close(out.cross_embeds, pair)
    torch.testing.assert_close(out.itm_logits, model.itm_head(pair[:, 0]))
    torch.testing.assert_close(out.bbox, model.bbox_head(model.fuse(texts, mask, whole[index])[:, 0]).sigmoid())
    hidden = model.fuse(masked, mask, copies, patches)
    logits = model.text_encoder.cls.predictions(hidden)[:, 1:3]
    torch.testing.assert_close(
        out.loss_mlm, F.cross_entropy(logits.flatten(0, 1), batch["mlm_labels"][:, :2].flatten())
    )


@torch.no_grad()
def test_a_region_that_is_the_whole_image_is_an_ordinary_pair():
    model, batch = small_model(), pairs()
    region = {"image_index": torch.arange(4), "patch_mask": torch.ones(4, 10, dtype=torch.long)}
    whole = model(**batch, **region, boxes=torch.rand(4, 4))
    general = model(**batch)
    for name in GENERAL:
        torch.testing.assert_close(whole[name], general[name], msg=name)


@torch.no_grad()
def test_a_region_sees_only_its_patches():
    """With local attention from the first layer on, pixels outside the patches do not reach the text's copy."""
    sizes = {"width": 24, "layers": 2, "heads": 3, "mlp": 40, "local_attn_depth": 2}
    model, batch = small_model(vision=sizes), regions()
    batch["patch_mask"] = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]).repeat(4, 1)
    changed = batch["pixel_values"].clone()
    changed[:, :, 8:] += 1.0  # the rows of patches below the first one
    before, after = model(**batch), model(**(batch | {"pixel_values": changed}))
    torch.testing.assert_close(before.cross_embeds, after.cross_embeds)
    assert (before.bbox - after.bbox).abs().max() > 1e-4


@pytest.mark.parametrize("make", [pairs, regions])
def test_calibration_runs_every_prunable_layer_once(make):
    model, calls = small_model(), []
    layers = original_names(model)
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    batch = {key: value for key, value in make().items() if not key.startswith("mlm_") and key != "boxes"}
    with torch.no_grad():
        model.calibration_forward(**batch)
        assert sorted(calls) == sorted(layers)
        model.calibration_forward(**batch, region=regions())
    assert sorted(calls) == sorted([*layers] * 3)


@torch.no_grad()
def test_calibration_sees_what_the_forward_sees():
    model, batch, seen = small_model(), regions(), []
    last = model.text_encoder.bert.encoder.layer[-1]
    hook = last.register_forward_hook(lambda module, args, out: seen.append(out))
    model.calibration_forward(**batch)
    hook.remove()
    torch.testing.assert_close(seen[0], model(**batch).cross_embeds)


def test_without_masked_texts_there_is_no_mlm_loss():
    out = small_model()(**{key: value for key, value in pairs().items() if not key.startswith("mlm_")})
    assert out.loss_mlm is None
    torch.testing.assert_close(out.loss, out.loss_itc + out.loss_itm)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        *[(pairs, key) for key in ("mlm_positions", "mlm_labels")],
        *[(regions, key) for key in ("image_index", "patch_mask", "boxes")],
    ],
)
def test_a_missing_key_is_named(make, key):
    batch = make()
    del batch[key]
    with pytest.raises(MultiflowError, match=f"the batch has no '{key}'"):
        small_model()(**batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_index": torch.zeros(2, dtype=torch.long)}, "image_index has 2 rows and input_ids has 4"),
        ({"patch_mask": torch.ones(4, 9, dtype=torch.long)}, "patch_mask has 9 columns; this model sees 10 tokens"),
    ],
)
def test_regions_of_a_wrong_size_are_errors(change, message):
    with pytest.raises(MultiflowError, match=message):
        small_model().calibration_forward(**(regions() | change))


def test_dropout_acts_in_training_only():
    model, batch = small_model(), pairs()
    with torch.no_grad():
        assert torch.equal(model(**batch).loss, model(**batch).loss)
        model.train()
        assert not torch.equal(model(**batch).loss, model(**batch).loss)


def test_initial_weights():
    torch.manual_seed(0)
    model = XVLMForPretraining(
        XVLMConfig(vision={"layers": 1, "local_attn_depth": 0}, text={"layers": 1, "fusion_layer": 0})
    )
    assert decoder_is_tied(model)
    assert model.temp.item() == pytest.approx(0.07)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() or name in ("itm_head.1.weight", "bbox_head.1.weight"):
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif name != "temp":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
