from __future__ import annotations

from inspect import signature
from types import SimpleNamespace

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import augment
from multiflow.families.presets import PRESETS, find_preset
from multiflow.families.task_models import BUILDERS
from multiflow.tasks import inputs
from multiflow.tasks.captioning.task import write_captions
from multiflow.tasks.retrieval.task import evaluate_pairs
from multiflow.tasks.vqa.task import answer_questions


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


@pytest.mark.parametrize(
    ("model_type", "task", "published"),
    [
        ("xvlm", "retrieval", {}),
        ("xvlm", "captioning", {"label_smoothing": 0.1}),
        ("xvlm", "vqa", {}),
        ("blip-pretraining", "retrieval", {"queue_size": 57600, "alpha": 0.4, "momentum": 0.995}),
        ("blip-pretraining", "captioning", {}),
        ("blip-pretraining", "vqa", {"drop_path": 0.1}),
        ("vit", "classification", {}),
    ],
)
def test_the_published_models_images_and_evaluation(model_type, task, published):
    p = find_preset("paper", of_type(model_type), task)
    assert p.options == published
    assert p.steps is None
    assert p.augment
    assert p.betas == ((0.9, 0.98) if model_type == "xvlm" else (0.9, 0.999))
    assert p.image_size == (None if task == "classification" else 384)
    assert p.val_split == ("test" if task == "classification" else "val")
    assert p.val_limit is None
    assert p.evaluate == ({"metrics": ("CIDEr",)} if task == "captioning" else {})


def test_the_published_evaluation_and_augmentation():
    def defaults(function, *names):
        return tuple(signature(function).parameters[name].default for name in names)

    assert defaults(evaluate_pairs, "k_test") == (256,)
    assert defaults(write_captions, "beams", "shortest", "longest") == (3, 5, 20)
    assert defaults(answer_questions, "top") == (128,)
    assert inputs.CROP == (0.5, 1.0)
    assert (augment.OPERATIONS, augment.MAGNITUDE) == (2, 7 / 10)


def test_a_model_or_task_without_any():
    with pytest.raises(
        MultiflowError, match="preset 'paper' has no hyper-parameters to fine-tune a model of type 'clip'"
    ):
        find_preset("paper", of_type("clip"), "retrieval")
