from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTForImageClassification, ViTModel

from multiflow.base.errors import MultiflowError
from multiflow.families import FAMILIES
from multiflow.families.opening import load_model
from multiflow.families.xvlm.models import XVLMForPretraining
from tests import golden_data
from tests.families.xvlm.sizes import small_model

GOLDEN = golden_data.FOLDER / "xvlm"
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"image_size": 32, "patch_size": 16}


def weights():
    return dict(golden_data.tensors("xvlm", "weights"))


def load(state, tmp_path, **changes):
    save_file({key: value.contiguous().clone() for key, value in state.items()}, tmp_path / "model.safetensors")
    return load_model(tmp_path / "model.safetensors", "xvlm", golden_data.config("xvlm") | changes)


def test_an_original_file_fills_every_parameter():
    model, state = golden_data.model("xvlm"), weights()
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert set(state) - set(parameters) == {"vision_encoder.position_ids", "text_encoder.bert.embeddings.position_ids"}
    assert all(torch.equal(p, state[name]) for name, p in parameters.items())
    text = model.text_encoder
    assert text.cls.predictions.decoder.weight is text.bert.embeddings.word_embeddings.weight


def test_a_loaded_original_can_be_saved_and_loaded_as_a_folder(tmp_path):
    model, batch = golden_data.model("xvlm"), golden_data.batches("xvlm")[0]
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, XVLMForPretraining)
    assert isinstance(AutoModel.from_pretrained(tmp_path), XVLMForPretraining)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_half_precision_files_become_float32(tmp_path):
    model = load({key: v.half() if v.is_floating_point() else v for key, v in weights().items()}, tmp_path)
    assert model.dtype == torch.float32


def test_shared_tensors_may_be_stored_once_or_twice(tmp_path):
    state = weights()
    del state["text_encoder.cls.predictions.decoder.weight"]
    state["text_encoder.cls.predictions.bias"] = state["text_encoder.cls.predictions.decoder.bias"]
    model = load(state, tmp_path)
    assert (
        model.text_encoder.cls.predictions.decoder.weight is model.text_encoder.bert.embeddings.word_embeddings.weight
    )
    state["text_encoder.cls.predictions.bias"] = state["text_encoder.cls.predictions.decoder.bias"] + 1
    with pytest.raises(MultiflowError, match="are one tensor in this family but differ here"):
        load(state, tmp_path)


def test_misfits_are_named(tmp_path):
    with pytest.raises(MultiflowError, match=r"pos_embed.weight' has shape \(17, 64\) .*\(26"):
        load(weights(), tmp_path, image_size=80)
    state = weights()
    del state["temp"], state["vision_proj.bias"]
    with pytest.raises(MultiflowError, match="lacks 'temp', 'vision_proj.bias'; pass config="):
        load(state, tmp_path)
    with pytest.raises(MultiflowError, match="holds 'surprise', which the model does not have"):
        load(weights() | {"surprise": torch.zeros(1)}, tmp_path)
    with pytest.raises(MultiflowError, match=r"class_embedding' has shape \(64,\) .*\(768,\)"):
        load_model(GOLDEN / "weights.safetensors", "xvlm")  # base, where nothing is said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (GOLDEN / "weights.safetensors",),
            "does not say which model it holds; pass family= one of blip, dino, open_clip, xvlm",
        ),
        ((GOLDEN / "weights.safetensors", "xvml"), "unknown family 'xvml'; known: .*; did you mean 'xvlm'"),
        (("nowhere/model.pth", "xvlm"), "there is no file or folder 'nowhere/model.pth'"),
        (("/nowhere/model",), "there is no file or folder '/nowhere/model'"),
        ((GOLDEN, None, "base"), "is not a file, and config= is for files of an original release; .* of its own"),
        ((GOLDEN, "xvlm"), "family 'xvlm' was given, but '.*xvlm' is of none of the families .*model_type 'None'"),
        ((GOLDEN, "xvml"), "unknown family 'xvml'; known: .*; did you mean 'xvlm'"),
        (("vit-digits", "blip"), "family 'blip' was given, but '.*vit-digits' is of family 'dino': .*model_type 'vit'"),
        ((GOLDEN.parent,), "holds no config.json"),
        ((GOLDEN,), "cannot load folder '.*xvlm': Unrecognized model"),
        (("no such model",), "'no such model' is no file or folder here, nor on Hugging Face: Repo id must use"),
    ],
)
def test_bad_sources(arguments, message):
    with pytest.raises(MultiflowError, match=message):
        load_model(*arguments)


def test_the_family_of_a_folder_may_be_said(tmp_path):
    for source, family in (("vit-digits", "dino"), ("xvlm-shapes", "xvlm"), ("blip-shapes", "blip")):
        assert type(load_model(source, family)) is type(load_model(source))
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    for family in FAMILIES:
        with pytest.raises(MultiflowError, match=f"family '{family}' was given, but .* model_type 'clip_vision_model'"):
            load_model(tmp_path, family)


def test_folders_of_transformers_models(tmp_path):
    model = ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "vit")
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path / "clip")
    loaded = load_model(str(tmp_path / "vit"))
    assert type(loaded) is ViTForImageClassification
    assert type(load_model(tmp_path / "clip")) is CLIPVisionModel
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits)


def test_weights_that_a_folder_lacks_are_announced(tmp_path):
    ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"2 weights of ViTForImage.*random: classifier\.bias"):
        load_model(tmp_path)


@pytest.mark.parametrize("size", [0, 1000, 2**36])
def test_weights_that_are_cut_or_mostly_a_hole(tmp_path, size):
    small_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(size)
    with pytest.raises(MultiflowError, match=f"cannot load folder '{tmp_path}': '{file}' is not a complete"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", "5", "null", "{", ""])
def test_a_config_that_is_none(tmp_path, content):
    small_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(MultiflowError, match=f"cannot load.*{tmp_path}"):
        load_model(tmp_path)


@pytest.mark.parametrize("count", [2**63, 10**6])
def test_a_config_that_claims_more_layers_than_any_model_has(tmp_path, count):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": count}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MultiflowError, match=f"claims num_hidden_layers={count}; expected at most"):
        load_model(tmp_path)
