from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.task_models import BUILDERS, TASKS, find_builder
from tests.families.xvlm.sizes import small_model
from tests.small import chain


@pytest.mark.parametrize(("model_type", "task"), BUILDERS)
def test_every_builder_is_there_and_its_options_are_keywords(model_type, task):
    assert task in TASKS
    builder = find_builder(SimpleNamespace(config=SimpleNamespace(model_type=model_type)), task)
    first, *options = inspect.signature(builder).parameters.values()
    assert first.name == "model"
    assert "image_size" in {option.name for option in options}
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}


def test_an_unknown_task():
    with pytest.raises(MultiflowError, match=r"unknown task 'captions'; known: .*; did you mean 'captioning'\?"):
        find_builder(small_model(), "captions")


def test_a_task_that_the_model_cannot_do():
    with pytest.raises(
        MultiflowError,
        match="a model of type 'xvlm' cannot do task 'classification', which takes one of type vit or dinov2; "
        "it can do retrieval, captioning, vqa",
    ):
        find_builder(small_model(), "classification")
    with pytest.raises(MultiflowError, match="'Sequential' cannot do task 'vqa'.*; it can do none of the tasks"):
        find_builder(chain(2, 2), "vqa")
