from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.config import BlipPretrainingConfig


def test_the_default_is_blip_base():
    config = BlipPretrainingConfig()
    assert (config.image_size, config.patch_size, config.embed_dim, config.queue_size) == (224, 16, 256, 57600)
    assert (config.momentum, config.alpha, config.temp) == (0.995, 0.4, 0.07)
    assert (config.bos_token_id, config.enc_token_id, config.pad_token_id) == (30522, 30523, 0)
    assert config.vision == {"width": 768, "layers": 12, "heads": 12, "mlp": 3072, "act": "gelu", "qkv": "fused"}
    assert (config.text["layers"], config.text["vocab_size"], config.text["encoder_width"]) == (12, 30524, 768)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"queue_size": 0}, "queue_size is 0; it must be a number of at least 1"),
        ({"momentum": 1.5}, "momentum is 1.5; it must be at most 1"),
        ({"alpha": -0.1}, "alpha is -0.1; it must be a number of at least 0"),
        ({"vision": {"qkv": "split"}}, "qkv is split; it must be 'fused'"),
        ({"text": {"vocab_size": 30522}}, "enc_token_id is 30523; it must be less than text.vocab_size, 30522"),
    ],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(MultiflowError, match=message):
        BlipPretrainingConfig(**sizes)
