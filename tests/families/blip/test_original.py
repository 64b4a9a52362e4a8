from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.contrastive import momentum_pairs
from multiflow.families.blip.original import BLIP, MOMENTUM, blip_config, blip_key, vision_key
from multiflow.families.blip.parts import shared_names
from multiflow.families.opening import load_model
from multiflow.families.original import read_config
from tests import golden_data

MED = {"architectures": ["BertModel"], "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
MED |= {"intermediate_size": 128, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "vocab_size": 600}
MED |= {"attention_probs_dropout_prob": 0.0, "max_position_embeddings": 64, "encoder_width": 768, "pad_token_id": 0}
PRETRAIN = {
    "image_size": 224,
    "vit": "base",
    "vit_grad_ckpt": False,
    "queue_size": 57600,
    "alpha": 0.4,
    "init_lr": 3e-4,
}


def weights():
    return dict(golden_data.tensors("blip", "weights"))


def load(state, tmp_path, **changes):
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    return load_model(tmp_path / "model.safetensors", "blip", golden_data.config("blip") | changes)


def with_momentum(state):
    """The file with momentum copies, each a tenth of its online weight."""
    online = ("visual_encoder.", "vision_proj.", "text_encoder.", "text_proj.")
    copies = {name.replace(".", "_m.", 1): value * 0.1 for name, value in state.items() if name.startswith(online)}
    return state | {name: value for name, value in copies.items() if not name.endswith("position_ids")}


def test_an_original_file_fills_every_tensor():
    model, state = golden_data.model("blip"), weights()
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert model.queue_ptr.dtype == torch.int64
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if not MOMENTUM.match(vision_key(name)):
            assert torch.equal(tensor, state[blip_key(name)]), name
    assert set(shared_names(model)) <= set(tensors)


def test_every_name_of_the_release_is_our_name_translated():
    model, state = golden_data.model("blip"), weights()
    ours = {blip_key(name) for name in model.state_dict()}
    assert {blip_key(name) for name in state if not name.endswith("position_ids")} <= ours
    assert ours - {blip_key(name) for name in state} == {
        name for name in map(vision_key, model.state_dict()) if MOMENTUM.match(name)
    }


def test_absent_momentum_copies_equal_the_online_weights_and_are_tensors_of_their_own():
    pairs = momentum_pairs(golden_data.model("blip"))
    assert all(torch.equal(copy, online) and copy.data_ptr() != online.data_ptr() for copy, online in pairs)


def test_momentum_copies_in_the_file_are_read(tmp_path):
    model = load(with_momentum(weights()), tmp_path)
    for copy, online in momentum_pairs(model):
        torch.testing.assert_close(copy, online * 0.1)


def test_absent_queues_are_fresh_and_always_the_same(tmp_path):
    state = {name: value for name, value in weights().items() if "queue" not in name}
    first, second = load(state, tmp_path), load(state, tmp_path)
    torch.testing.assert_close(first.image_queue.norm(dim=0), torch.ones(8))
    assert torch.equal(first.image_queue, second.image_queue)
    assert first.queue_ptr.tolist() == [0]
    assert torch.isfinite(first(**golden_data.batches("blip")[0]).loss)


def test_shared_tensors_may_be_stored_once_or_twice(tmp_path):
    model = golden_data.model("blip")
    once = {name: value for name, value in weights().items() if blip_key(name) == name}
    assert len(once) < len(weights())
    loaded = load(once, tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_shared_tensors_that_differ_are_an_error(tmp_path):
    state = weights()
    state["text_decoder.bert.encoder.layer.0.output.dense.bias"] = torch.ones(64)
    with pytest.raises(MultiflowError, match="are one tensor in this family but differ here"):
        load(state, tmp_path)


def test_misfits_are_named_as_in_the_file(tmp_path):
    with pytest.raises(MultiflowError, match=r"'visual_encoder.pos_embed' .*\(1, 17, 64\) .*\(1, 26"):
        load(weights(), tmp_path, image_size=80)
    with pytest.raises(MultiflowError, match=r"'image_queue' .*\(32, 8\) .*\(32, 16\)"):
        load(weights(), tmp_path, queue_size=16)
    state = weights()
    del state["vision_proj.bias"], state["visual_encoder.norm.bias"]
    with pytest.raises(MultiflowError, match="'visual_encoder.norm.bias', .* and 1 more; pass"):
        load(state, tmp_path)
    with pytest.raises(MultiflowError, match="holds 'surprise', which the model does not have"):
        load(weights() | {"surprise": torch.zeros(1)}, tmp_path)


@pytest.mark.parametrize(("of", "family"), [("xvlm", "blip"), ("blip", "xvlm"), ("dino", "blip"), ("blip", "dino")])
def test_a_checkpoint_of_another_family_names_the_first_keys_that_do_not_fit_both_ways(of, family):
    folder, name = golden_data.FOLDER, r"'([\w.]+)'"
    some = rf"{name}, {name}, {name} and \d+ more"
    said = (
        rf"weights.safetensors' lacks {some}, and holds {some}, which the model does not have; pass config= .* family"
    )
    with pytest.raises(MultiflowError, match=said) as error:
        load_model(folder / of / "weights.safetensors", family, folder / family / "config.json")
    named, file = re.search(said, str(error.value)).groups(), golden_data.tensors(of, "weights")
    assert [key in file for key in named] == [False] * 3 + [True] * 3


@pytest.fixture
def release(tmp_path):
    """The release's tree: a YAML file, and the text model's JSON file by its path from the root of the repository."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "med_config.json").write_text(json.dumps(MED))
    (tmp_path / "configs" / "pretrain.yaml").write_text(
        yaml.safe_dump(PRETRAIN | {"med_config": "configs/med_config.json"})
    )
    return tmp_path / "configs" / "pretrain.yaml"


def test_the_config_files_of_the_release(release):
    config = blip_config(read_config(release, BLIP.presets))
    assert (config.image_size, config.queue_size, config.alpha, config.vision["layers"]) == (224, 57600, 0.4, 12)
    assert config.text["width"] == 64
    assert (config.text["heads"], config.text["vocab_size"], config.text["encoder_width"]) == (4, 600, 768)
    assert (config.bos_token_id, config.enc_token_id) == (598, 599)


def test_the_presets():
    base, large = (blip_config(read_config(name, BLIP.presets)) for name in (None, "large"))
    assert base.to_diff_dict() == blip_config({}).to_diff_dict()
    assert (large.vision["width"], large.vision["layers"], large.vision["heads"], large.vision["mlp"]) == (
        1024, 24, 16, 4096
    )  # fmt: skip
    assert (large.text["width"], large.text["encoder_width"]) == (768, 1024)


def test_a_saved_config_says_the_same(tmp_path):
    plain = blip_config(golden_data.config("blip"))
    plain.save_pretrained(tmp_path)
    assert blip_config(read_config(tmp_path / "config.json", BLIP.presets)).to_diff_dict() == plain.to_diff_dict()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (PRETRAIN | {"vit": "huge"}, "unknown vit 'huge'; known: base, large"),
        (PRETRAIN | {"med_config": 3}, "med_config is 3; it must be a mapping"),
        ({"image_size": 64, "embde_dim": 32}, "unknown size 'embde_dim'.*did you mean 'embed_dim'"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(MultiflowError, match=message):
        blip_config(sizes)


def test_the_length_of_the_queues_is_read_off_the_file(tmp_path):
    sizes = {key: value for key, value in golden_data.config("blip").items() if key != "queue_size"}
    save_file(weights(), tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors", "blip", sizes).config.queue_size == 8
