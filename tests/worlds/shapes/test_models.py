from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multiflow.families.blip.models import BlipForPretraining
from multiflow.worlds.shapes.models import Pretraining, plane_waves, shapes_model, shapes_tokenizer
from tests.tiny import FAMILIES, SMALL_BLIP


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_the_model_depends_on_the_seed_alone(settings):
    one = shapes_model(settings, 50).state_dict()
    torch.manual_seed(99)
    two = shapes_model(settings, 50).state_dict()
    other = shapes_model(replace(settings, seed=1), 50).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["text_proj.weight"], other["text_proj.weight"])


def test_positions_start_apart():
    waves = plane_waves(Pretraining(image_size=48, patch_size=8, width=32))
    assert waves.shape == (36, 32)
    near = waves @ waves.T
    assert (near.argmax(1) == torch.arange(36)).all()
    assert near[0, 1] > near[0, 3]  # the next column is more alike than the third


@pytest.mark.parametrize(
    ("name", "positions"),
    [("xvlm", "vision_encoder.pos_embed.weight"), ("blip", "vision_model.embeddings.position_embedding")],
)
def test_the_patches_of_both_families_start_from_plane_waves(name, positions):
    model = shapes_model(FAMILIES[name], 50)
    start = model.get_parameter(positions).squeeze(0)
    assert torch.equal(start[1:], plane_waves(FAMILIES[name]))


def test_both_bundled_models_fit_into_15_megabytes_of_float16():
    sizes = {}
    for family in FAMILIES:
        model = shapes_model(Pretraining(family=family), len(shapes_tokenizer(family)))
        sizes[family] = 2 * model.num_parameters()
    assert sizes["xvlm"] < 8e6
    assert sum(sizes.values()) < 15e6


def test_sizes_that_are_not_given_are_those_of_the_family():
    assert Pretraining().size("vision_mlp") == 768
    assert Pretraining(family="blip").size("vision_mlp") == 576
    config = shapes_model(replace(SMALL_BLIP, text_layers=None, text_mlp=40), 50).config
    assert (config.text["layers"], config.text["mlp"]) == (3, 40)
    config = shapes_model(FAMILIES["xvlm"], 50).config
    assert (config.text["layers"], config.text["fusion_layer"], config.vision["local_attn_depth"]) == (2, 1, 1)


def test_the_first_tokens_of_blip_are_the_last_two_of_its_tokenizer():
    plain, tokenizer = shapes_tokenizer(), shapes_tokenizer("blip")
    assert len(tokenizer) == len(plain) + 2
    assert plain.get_vocab().items() < tokenizer.get_vocab().items()
    model = shapes_model(SMALL_BLIP, len(tokenizer))
    assert isinstance(model, BlipForPretraining)
    ids = [model.config.bos_token_id, model.config.enc_token_id]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[DEC]", "[ENC]"]
    assert tokenizer("a red star [ENC]", add_special_tokens=False)["input_ids"][-1] == ids[1]
