from __future__ import annotations

import numpy as np
import pytest
import torch

from multiflow.worlds.shapes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, Object, Scene, make_scenes
from multiflow.worlds.shapes.models import shapes_model
from multiflow.worlds.shapes.pretrain import CLASSES, PatchClassifier, owner_map, patch_labels, patch_loss
from tests.tiny import FAMILIES

SQUARE = Object("square", "blue", "large", "striped", x=0.25, y=0.75, radius=0.2)
DISC = Object("circle", "red", "small", "solid", x=0.75, y=0.25, radius=0.1)
SCENE = Scene((SQUARE, DISC), "checked", "plain", seed=3)


def perfect(labels: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    parts = [torch.nn.functional.one_hot(labels[..., k], size) * 40.0 for k, size in enumerate(CLASSES)]
    return torch.cat([*parts, pixels * 80.0 - 40], dim=-1)


def test_owners_fill_the_outlines():
    owners = owner_map(SCENE, 100)
    assert owners[75, 25] == 1
    assert owners[25, 75] == 2
    assert (owners == 1).sum() == pytest.approx((2 * 0.86 * 20) ** 2, rel=0.03)
    assert (owners == 2).sum() == pytest.approx(np.pi * 100, rel=0.05)
    assert (owners[:55, :60] == 0).all()


def test_a_patch_has_the_attributes_of_what_covers_it():
    labels, pixels = patch_labels([SCENE, Scene((DISC,), "white", "plain", seed=1)], side=48, patch=12)
    assert labels.shape == (2, 16, 5)
    assert pixels.shape == (2, 16, 144)
    inside_square = 2 * 4 + 1  # third row, second column
    names = (SHAPES.index("square"), COLOURS.index("blue"), SIZES.index("large"), FILLS.index("striped"))
    assert labels[0, inside_square, :4].tolist() == [1 + k for k in names]
    assert labels[0, 2, 1] == 1 + COLOURS.index("red")
    assert labels[0, 0, :4].tolist() == [0, 0, 0, 0]
    assert (labels[0, :, 4] == BACKGROUNDS.index("checked")).all()
    assert (labels[1, :, 4] == BACKGROUNDS.index("white")).all()
    assert (labels[1, 8:, :4] == 0).all()
    # pixels are row by row inside a patch: the square's patches put together give back its outline
    whole = pixels[0].reshape(4, 4, 12, 12).swapaxes(1, 2).reshape(48, 48)
    assert np.array_equal(whole, owner_map(SCENE, 48) > 0)


def test_a_perfect_answer_costs_nothing():
    labels, pixels = map(torch.from_numpy, patch_labels(make_scenes("train", 8), side=24, patch=8))
    loss, figures = patch_loss(perfect(labels, pixels.float()), labels, pixels)
    assert loss.item() < 1e-6
    assert {name: figures[name].item() for name in ("patches", "shape", "colour", "size", "fill")} == dict.fromkeys(
        ("patches", "shape", "colour", "size", "fill"), 1.0
    )


def test_one_wrong_attribute_makes_the_patch_wrong():
    labels, pixels = map(torch.from_numpy, patch_labels([SCENE], side=48, patch=12))
    answer = perfect(labels, pixels.float())
    first = int((labels[0, :, 0] > 0).nonzero()[0])
    objects = int((labels[0, :, 0] > 0).sum())
    start = CLASSES[0]
    answer[0, first, start : start + CLASSES[1]] = answer[0, first, start : start + CLASSES[1]].flip(0)
    loss, figures = patch_loss(answer, labels, pixels)
    assert figures["shape"] == 1
    assert figures["colour"] == figures["patches"] == pytest.approx((objects - 1) / objects)
    assert loss.item() == pytest.approx(40 / objects, rel=1e-4)


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_the_classifier_trains_the_tower_of_the_model(settings):
    model = shapes_model(settings, 50)
    classifier = PatchClassifier(model)
    labels, pixels = map(torch.from_numpy, patch_labels(make_scenes("train", 4), side=24, patch=8))
    loss, _ = patch_loss(classifier(torch.randn(4, 3, 24, 24)), labels, pixels)
    loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    patches = {"xvlm": "vision_encoder.patch_embed.weight", "blip": "vision_model.embeddings.patch_embedding.weight"}
    assert model.get_parameter(patches[settings.family]).grad.abs().sum() > 0
    assert {name.split(".")[0] for name in reached} == {patches[settings.family].split(".")[0]}
