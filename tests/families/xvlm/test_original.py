from __future__ import annotations

import json

import pytest
import torch
import yaml

from multiflow.base.errors import MultiflowError
from multiflow.families.opening import load_model
from multiflow.families.original import read_config
from multiflow.families.xvlm.adapter import XVLM, xvlm_config
from tests import golden_data

VISION = {"vision_width": 64, "patch_size": 16, "hidden_act": "quick_gelu", "num_attention_heads": 4}
VISION |= {"attention_dropout": 0.0, "intermediate_size": 128, "num_hidden_layers": 3, "local_attn_depth": 1}
TEXT = {"architectures": ["BertForMaskedLM"], "hidden_size": 64, "num_hidden_layers": 4, "fusion_layer": 2}
TEXT |= {"num_attention_heads": 4, "intermediate_size": 128, "hidden_act": "gelu", "hidden_dropout_prob": 0.0}
TEXT |= {"vocab_size": 600, "max_position_embeddings": 64, "type_vocab_size": 2, "encoder_width": 768}
PRETRAIN = {"use_clip_vit": True, "use_swin": False, "use_roberta": False, "image_res": 64, "patch_size": 16}
PRETRAIN |= {"embed_dim": 32, "temp": 0.07, "max_tokens": 40, "optimizer": {"opt": "adamW"}}


@pytest.fixture
def release(tmp_path):
    """The release's tree: a YAML file that names two JSON files by paths from the root of the repository."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config_clipvitB.json").write_text(json.dumps(VISION))
    (tmp_path / "configs" / "config_bert.json").write_text(json.dumps(TEXT))
    paths = {"vision_config": "configs/config_clipvitB.json", "text_config": "configs/config_bert.json"}
    (tmp_path / "configs" / "pretrain.yaml").write_text(yaml.safe_dump(PRETRAIN | paths))
    return tmp_path / "configs" / "pretrain.yaml"


def test_every_form_of_the_sizes_says_the_same(release, tmp_path):
    plain = xvlm_config(golden_data.config("xvlm"))
    plain.save_pretrained(tmp_path)
    nested = PRETRAIN | {"vision_config": VISION, "text_config": TEXT}
    for sizes in (release, nested, tmp_path / "config.json", golden_data.FOLDER / "xvlm" / "config.json"):
        assert xvlm_config(read_config(sizes, XVLM.presets)).to_diff_dict() == plain.to_diff_dict()


def test_a_checkpoint_loads_with_the_config_files_of_the_release(release):
    path = golden_data.FOLDER / "xvlm" / "weights.safetensors"
    model = load_model(path, family="xvlm", config=release)
    batch, expected = golden_data.batches("xvlm")[0], golden_data.tensors("xvlm", "expected")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).cross_embeds, expected["cross_embeds"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (PRETRAIN | {"use_swin": True}, "use_swin: True; only X-VLM with a CLIP ViT and BERT"),
        (PRETRAIN | {"use_clip_vit": False}, "use_clip_vit: False; only"),
        (PRETRAIN | {"vision_config": {"patch_size": 32}}, "patch_size is 16 but vision_config says 32"),
        ({"image_size": 64, "embde_dim": 32}, "unknown size 'embde_dim'.*did you mean 'embed_dim'"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(MultiflowError, match=message):
        xvlm_config(sizes)
