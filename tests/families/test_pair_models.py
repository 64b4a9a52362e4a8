"""What holds of the pretraining models of every family that compares images with texts, and of their sizes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.opening import load_model
from tests import golden_data
from tests.families.blip import sizes as blip
from tests.families.xvlm import sizes as xvlm

FAMILIES = {"xvlm": xvlm, "blip": blip}
CONFIGS = {name: type(family.small_config()) for name, family in FAMILIES.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=list(FAMILIES))
def name(request):
    return request.param


def losses_of(out):
    return [name for name in out if name.startswith("loss")]


def test_what_is_not_given_has_the_size_of_the_base_model(name):
    config = CONFIGS[name](vision={"width": 96, "heads": 4}, text={"width": 64, "heads": 2})
    assert config.vision["mlp"] == 3072
    assert config.text["encoder_width"] == 96


def test_a_config_survives_json(name, tmp_path):
    config = CONFIGS[name](**golden_data.config(name))
    config.save_pretrained(tmp_path)
    assert CONFIGS[name].from_pretrained(tmp_path).to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {key: stored[key] for key in golden_data.config(name)} == golden_data.config(name)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision": {"widht": 64}}, "unknown size 'vision.widht'.*did you mean 'vision.width'"),
        ({"vision": "swin"}, "vision is 'swin'; it must map names to sizes"),
        ({"image_size": 225}, "image_size is 225; .* multiple of patch_size"),
        ({"image_size": "224"}, "image_size is '224'; it must be a number"),
        ({"vision": {"heads": 7}}, "vision.width is 768; it must be a multiple of vision.heads"),
        ({"vision": {"layers": 0}}, "vision.layers is 0; it must be a number of at least 1"),
        ({"text": {"encoder_width": 512}}, "text.encoder_width is 512; it must be equal to vision.width"),
        ({"text": {"act": "gleu"}}, "unknown activation 'gleu'.*did you mean 'gelu'"),
    ],
)
def test_wrong_sizes_are_named(name, sizes, message):
    with pytest.raises(MultiflowError, match=message):
        CONFIGS[name](**sizes)


def test_the_original_names_are_those_of_the_golden_list(name):
    model, stored = golden_data.model(name), golden_data.tensors(name, "weights")
    names = mf.original_names(model)
    weights = {layer: model.get_submodule(layer).weight for layer in names}
    assert {names[layer]: tuple(weight.shape) for layer, weight in weights.items()} == golden_data.prunable(name)
    assert list(names) == [layer for layer, _ in model.named_modules() if layer in names]
    assert all(torch.equal(weight, stored[names[layer]]) for layer, weight in weights.items())


@torch.no_grad()
def test_padding_changes_nothing(family):
    model, batch = family.small_model(), family.pairs()
    longer = {key: F.pad(value, (0, 3)) if value.shape[-1] == 7 else value for key, value in batch.items()}
    short, long = copy.deepcopy(model)(**batch), model(**longer)
    for loss in losses_of(short):
        torch.testing.assert_close(short[loss], long[loss])


def test_negatives_are_a_function_of_the_seed(family):
    batch = family.pairs(count=8)
    with torch.no_grad():
        losses = [family.small_model()(**batch, seed=seed).loss_itm.item() for seed in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert len(set(losses)) > 1


def test_a_batch_of_one_uses_the_pair_alone_and_says_so(family):
    model, batch = family.small_model(), family.pairs(count=1)
    with torch.no_grad(), pytest.warns(UserWarning, match="no hard negatives"):
        out = model(**batch)
    torch.testing.assert_close(out.loss_itm, F.cross_entropy(out.itm_logits, torch.tensor([1])))
    model.calibration_forward(**batch)


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
def test_a_missing_key_is_named(family, key):
    batch = family.pairs()
    del batch[key]
    for run in (family.small_model(), family.small_model().calibration_forward):
        with pytest.raises(MultiflowError, match=f"the batch has no '{key}'; .* needs"):
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
def test_inputs_of_a_wrong_size_are_errors_before_anything_moves(family, change, message):
    model = family.small_model()
    before = copy.deepcopy(model.state_dict())
    batch = {key: value for key, value in family.pairs().items() if not key.startswith("mlm_")}
    with pytest.raises(MultiflowError, match=message):
        model(**(batch | change))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_step_reaches_every_parameter_and_lowers_the_loss(family):
    model, batch = family.small_model().train(), family.pairs()
    if family is xvlm:
        batch |= {"region": xvlm.regions()}  # its boxes are learned from regions
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


@torch.no_grad()
def test_the_temperature_is_clamped_in_a_copy(family):
    model, batch = family.small_model(), family.pairs()
    other = copy.deepcopy(model)
    model.temp.fill_(0.5)
    other.temp.fill_(7.0)
    torch.testing.assert_close(model(**batch).loss_itc, other(**batch).loss_itc)
    assert other.temp == 7.0


@torch.no_grad()
def test_bfloat16(family):
    exact, model = family.small_model(), family.small_model().bfloat16()
    out = model(**family.pairs())  # float32 images are taken, too
    assert out.image_embeds.dtype == torch.bfloat16
    torch.testing.assert_close(out.loss, exact(**family.pairs()).loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading(family, tmp_path, dtype):
    model = family.small_model().to(dtype)
    model(**family.pairs())  # so that what a model remembers is not the initial memory
    model.save_pretrained(tmp_path)
    for load in (type(model).from_pretrained, load_model):
        loaded = load(tmp_path)
        assert type(loaded) is type(model)
        assert loaded.dtype == dtype
        assert not loaded.training
        assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(**family.pairs()).loss, model(**family.pairs()).loss)
