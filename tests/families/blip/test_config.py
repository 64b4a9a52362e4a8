from __future__ import annotations

import json

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.config import BlipPretrainingConfig
from tests import golden_data


def test_the_default_is_blip_base():
    config = BlipPretrainingConfig()
    assert (config.image_size, config.patch_size, config.embed_dim, config.queue_size) == (224, 16, 256, 57600)
    assert (config.momentum, config.alpha, config.temp) == (0.995, 0.4, 0.07)
    assert (config.bos_token_id, config.enc_token_id, config.pad_token_id) == (30522, 30523, 0)
    assert config.vision == {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "act": "gelu", "qkv": "fused"}
    assert (config.text["layers"], config.text["vocab_size"], config.text["encoder_width"]) == (12, 30524, 768)


def test_what_is_not_given_has_the_size_of_the_base_model():
    config = BlipPretrainingConfig(vision={"width": 96, "heads": 4}, text={"width": 64, "heads": 2})
    assert config.vision["mlp"] == 3072
    assert config.text["encoder_width"] == 96


def test_it_survives_json(tmp_path):
    config = BlipPretrainingConfig(**golden_data.config("blip"))
    config.save_pretrained(tmp_path)
    assert BlipPretrainingConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {key: stored[key] for key in golden_data.config("blip")} == golden_data.config("blip")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision": {"widht": 64}}, "unknown size 'vision.widht'.*did you mean 'vision.width'"),
        ({"image_size": 225}, "image_size is 225; it must be a multiple of patch_size"),
        ({"queue_size": 0}, "queue_size is 0; it must be a number of at least 1"),
        ({"momentum": 1.5}, "momentum is 1.5; it must be at most 1"),
        ({"alpha": -0.1}, "alpha is -0.1; it must be a number of at least 0"),
        ({"vision": {"heads": 7}}, "vision.width is 768; it must be a multiple of vision.heads"),
        ({"vision": {"qkv": "split"}}, "qkv is split; it must be 'fused'"),
        ({"text": {"encoder_width": 512}}, "text.encoder_width is 512; it must be equal to vision.width"),
        ({"text": {"vocab_size": 30522}}, "enc_token_id is 30523; it must be less than text.vocab_size, 30522"),
        ({"text": {"act": "gleu"}}, "unknown activation 'gleu'"),
    ],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(MultiflowError, match=message):
        BlipPretrainingConfig(**sizes)
