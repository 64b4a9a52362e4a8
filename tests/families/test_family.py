"""The table of families: every record leads to parts that are there, and what is asked of none of them is an error."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from torch import nn

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.data import augment
from multiflow.families import original_names
from multiflow.families.family import FAMILIES, find_builder, find_family, find_preset, model_types
from multiflow.tasks import inputs
from multiflow.tasks.captioning.task import write_captions
from multiflow.tasks.retrieval.task import evaluate_pairs
from multiflow.tasks.task import TASKS
from multiflow.tasks.vqa.task import answer_questions
from tests.families.xvlm.sizes import small_model
from tests.small import chain

TYPES = {model_type: (family, known) for model_type, family, known in model_types()}
ABLE = [(model_type, task) for model_type, (_, known) in TYPES.items() for task in known.tasks]
PRESETS = list(dict.fromkeys(name for family in FAMILIES.values() for name in family.presets))


def of_type(model_type: str) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_record_is_there(name):
    family = FAMILIES[name]
    assert family.name == name
    parts = [family.classes, family.release, family.scoring, family.memory, family.recipe, *family.task_models.values()]
    for known in family.models.values():
        parts += [known.adapter, known.original, known.batches]
        assert callable(family.get(known.adapter))
        assert {*known.untrained} <= {*known.tasks} <= {*family.task_models}
        assert {*known.tasks, *known.evaluates} <= set(TASKS)
    for part in parts:
        assert part is None or family.get(part) is not None
    for known in family.models.values():
        assert known.original is None or family.get(known.original).layers
    assert family.release is None or family.get(family.release).build


def test_no_model_type_is_in_two_families():
    every = [model_type for model_type, *_ in model_types()]
    assert len(every) == len(set(every))
    assert find_family(of_type("xvlm-vqa")) == TYPES["xvlm-vqa"]


@pytest.mark.parametrize(("model_type", "task"), ABLE)
def test_every_builder_is_there_and_its_options_are_keywords(model_type, task):
    builder = find_builder(of_type(model_type), task)
    first, *options = inspect.signature(builder).parameters.values()
    assert first.name == "model"
    assert "image_size" in {option.name for option in options}
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}


def test_every_task_can_be_done_by_some_model():
    of_any_type = {task for family in FAMILIES.values() if family.others for task in family.others.tasks}
    assert {task for _, task in ABLE} | of_any_type == set(TASKS)
    for _, known in TYPES.values():
        assert known.evaluates == ("retrieval",) or {*known.evaluates} <= {*known.tasks}


def test_an_unknown_task():
    with pytest.raises(MultiflowError, match=r"unknown task 'captions'; known: .*; did you mean 'captioning'\?"):
        find_builder(small_model(), "captions")


def test_a_task_that_the_model_cannot_do():
    with pytest.raises(MultiflowError, match="'xvlm' cannot do .*'classification'.* vit or dinov2"):
        find_builder(small_model(), "classification")
    with pytest.raises(MultiflowError, match="'Sequential' cannot do task 'vqa'.*; it can do none of the tasks"):
        find_builder(chain(2, 2), "vqa")


def test_a_model_of_no_known_family():
    with pytest.raises(MultiflowError, match="unknown model type 'Linear'; known: .*xvlm"):
        original_names(nn.Linear(2, 2))
    with pytest.raises(MultiflowError, match=r"no adapter for a Sequential .*known: .*xvlm.*adapter=mf.Adapter"):
        mf.adapter_for(chain(2, 2))


def test_an_adapter_may_be_changed_where_it_is_asked_for():
    model = small_model()
    layout = mf.adapter_for(model).layout(model)
    some = next(name for name in layout if "mlp" in name)
    adapter = mf.adapter_for(model, exclude=f"^{some}$", streams={r"mlp\.fc1$": "image"})
    assert set(layout) - set(adapter.layout(model)) == {some}
    assert adapter.stream("vision_encoder.encoder.layers.0.mlp.fc1") == "image"
    only = mf.adapter_for(model, groups={"eyes": r"^vision_encoder\.encoder\."}).layout(model)
    assert set(only) == {layer.name for layer in layout.groups["vision"]}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("model_type", "task"), ABLE)
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
        return tuple(inspect.signature(function).parameters[name].default for name in names)

    assert defaults(evaluate_pairs, "k_test") == (256,)
    assert defaults(write_captions, "beams", "shortest", "longest") == (3, 5, 20)
    assert defaults(answer_questions, "top") == (128,)
    assert inputs.CROP == (0.5, 1.0)
    assert (augment.OPERATIONS, augment.MAGNITUDE) == (2, 7 / 10)


def test_a_model_or_task_without_any():
    with pytest.raises(MultiflowError, match="preset 'paper' .* of type 'clip' for task 'retrieval'"):
        find_preset("paper", of_type("clip"), "retrieval")
    with pytest.raises(MultiflowError, match="unknown preset 'papers'; known: paper, shapes"):
        find_preset("papers", of_type("xvlm"), "retrieval")
