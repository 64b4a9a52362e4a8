from __future__ import annotations

from types import SimpleNamespace

import pytest

from multiflow.errors import MultiflowError
from multiflow.models.task_models import BUILDERS
from multiflow.tasks.presets import PRESETS, find_preset


def of_type(model_type: str) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("model_type", "task"), BUILDERS)
def test_every_model_that_can_do_a_task_has_its_hyper_parameters(name, model_type, task):
    assert find_preset(name, of_type(model_type), task).lr > 0


@pytest.mark.parametrize(
    ("model_type", "task", "published"),
    [
        ("xvlm", "retrieval", (3e-5, 128, 10, 0.01, "linear", 0.1, 2.0)),
        ("xvlm", "captioning", (1e-5, 256, 5, 0.01, "linear", 0.1, 1.0)),
        ("xvlm", "vqa", (5e-5, 256, 10, 0.01, "linear", 0.1, 2.0)),
        ("blip-pretraining", "retrieval", (1e-5, 128, 6, 0.05, "cosine", 0.0, 1.0)),
        ("blip-pretraining", "captioning", (1e-5, 256, 5, 0.05, "cosine", 0.0, 1.0)),
        ("blip-pretraining", "vqa", (2e-5, 256, 10, 0.05, "cosine", 0.0, 1.0)),
        ("vit", "classification", (1e-5, 32, 10, 0.0, "cosine", 0.1, 1.0)),
    ],
)
def test_the_published_ones(model_type, task, published):
    p = find_preset("paper", of_type(model_type), task)
    assert (p.lr, p.batch_size, p.epochs, p.weight_decay, p.schedule, p.warmup, p.new_lr) == published
    assert p.steps is None
    assert p.augment
    assert p.image_size == (None if task == "classification" else 384)


def test_a_model_or_task_without_any():
    with pytest.raises(
        MultiflowError, match="preset 'paper' has no hyper-parameters to fine-tune a model of type 'clip'"
    ):
        find_preset("paper", of_type("clip"), "retrieval")
