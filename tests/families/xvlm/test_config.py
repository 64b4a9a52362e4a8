from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.config import XVLMCaptioningConfig, XVLMConfig, XVLMRetrievalConfig, XVLMVQAConfig
from tests import golden_data


def test_the_default_is_x_vlm_base():
    config = XVLMConfig()
    assert (config.image_size, config.patch_size, config.embed_dim, config.temp) == (224, 16, 256, 0.07)
    assert config.vision == {
        "width": 768, "layers": 12, "heads": 12, "mlp": 3072, "act": "quick_gelu", "local_attn_depth": 4
    }  # fmt: skip
    assert (config.text["layers"], config.text["fusion_layer"], config.text["vocab_size"]) == (12, 6, 30522)


@pytest.mark.parametrize("kind", [XVLMRetrievalConfig, XVLMCaptioningConfig, XVLMVQAConfig])
def test_the_configs_of_tasks_have_the_same_sizes_and_checks(kind, tmp_path):
    sizes = XVLMConfig().to_dict()
    assert {name: getattr(kind(), name) for name in ("image_size", "vision", "text")} == {
        name: sizes[name] for name in ("image_size", "vision", "text")
    }
    config = kind(**golden_data.config("xvlm"))
    config.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert kind.model_type != XVLMConfig.model_type
    with pytest.raises(MultiflowError, match="image_size is 225; .* multiple of patch_size"):
        kind(image_size=225)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision": {"layers": 2}}, "vision.local_attn_depth is 4; it must be at most vision.layers"),
        ({"text": {"fusion_layer": 13}}, "text.fusion_layer is 13; it must be at most text.layers"),
    ],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(MultiflowError, match=message):
        XVLMConfig(**sizes)
