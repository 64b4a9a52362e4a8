from __future__ import annotations

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families import original_names
from multiflow.families.opening import load_model
from multiflow.families.task_models import resize_positions
from tests import golden_data

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"image_size": 32, "patch_size": 8}
MAKERS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)),
    "bare vit": lambda: ViTModel(ViTConfig(**SIZES)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**SIZES, num_labels=3)),
    "bare dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
}
makers = pytest.mark.parametrize("kind", MAKERS)


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    return MAKERS[kind]().eval()


def positions(model):
    return next(p[0] for name, p in model.named_parameters() if name.endswith("position_embeddings"))


@makers
@torch.no_grad()
def test_the_encoder_goes_on_and_the_head_is_new(model, kind):
    built, places = mf.build_task_model(model, "classification", classes=5)
    images = torch.randn(2, 3, 32, 32)
    encoder = getattr(model, built.base_model_prefix, model)
    expected = encoder(images).last_hidden_state
    assert torch.equal(getattr(built, built.base_model_prefix)(images).last_hidden_state, expected)
    out = built(pixel_values=images, labels=torch.tensor([0, 4]))
    assert out.logits.shape == (2, 5)
    assert torch.isfinite(out.loss)
    assert built.config.num_labels == len(built.config.id2label) == 5
    assert list(places) == list(original_names(model))
    same = all(paths == (layer,) for layer, paths in places.items())
    assert same == (not kind.startswith("bare"))
    for layer, (path,) in places.items():
        assert torch.equal(built.get_submodule(path).weight, model.get_submodule(layer).weight)


def test_a_new_head_of_as_many_labels_is_new_all_the_same():
    model = MAKERS["vit"]()
    built = mf.task_model(model, "classification", classes=3)
    assert not torch.equal(built.classifier.weight, model.classifier.weight)
    assert not built.classifier.bias.any()


@makers
@torch.no_grad()
def test_another_resolution(model, kind):
    built = mf.task_model(model, "classification", classes=2, image_size=48)
    assert torch.equal(positions(built), resize_positions(positions(model), 6))
    assert built(torch.randn(1, 3, 48, 48)).logits.shape == (1, 2)


@makers
@torch.no_grad()
def test_saved_and_loaded(model, kind, tmp_path):
    built = mf.task_model(model, "classification", classes=4, image_size=40)
    built.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(load_model(tmp_path)(images).logits, built(images).logits)


@makers
def test_the_mask_follows(model, kind):
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    built = mf.task_model(model, "classification", masks, classes=4, image_size=48)
    layout = mf.adapter_for(built).layout(built)
    assert len(layout) == len(masks)
    for name, path in zip(masks, layout, strict=True):
        expected = torch.where(masks[name], model.get_submodule(name).weight, 0.0)
        assert torch.equal(built.get_submodule(path).weight, expected)


def test_the_golden_dino_starts_a_classifier():
    model, images = golden_data.model("dino"), golden_data.batches("dino")[0]["pixel_values"]
    built = mf.task_model(model, "classification", classes=7)
    with torch.no_grad():
        built.classifier.weight[:3] = model.classifier.weight[:3]
        built.classifier.bias[:3] = model.classifier.bias[:3]
        torch.testing.assert_close(built(images).logits[:, :3], model(images).logits[:, :3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task 'classification' needs the option classes=, which was not given"),
        ({"classes": 0}, "classes is 0; it must be at least 1"),
        ({"classes": 2, "image_size": 4}, "image_size is 4; it must be at least the patch size, 8"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(MultiflowError, match=message):
        mf.task_model(MAKERS["vit"](), "classification", **options)
