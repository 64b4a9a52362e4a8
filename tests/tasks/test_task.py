from __future__ import annotations

import subprocess
import sys

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.task_models import BUILDERS
from multiflow.tasks.task import TASKS


def test_every_task_is_in_the_table_under_its_name():
    assert {name: task.name for name, task in TASKS.items()} == dict(zip(TASKS, TASKS, strict=True))
    assert set(TASKS) == {task for _, task in BUILDERS}
    assert len(TASKS) == 4


def test_an_unknown_task_is_named():
    assert "vqq" not in TASKS
    with pytest.raises(MultiflowError, match="unknown task 'vqq'; known: retrieval, captioning, vqa, .*did you mean"):
        TASKS["vqq"]


def test_the_table_imports_no_task():
    code = (
        "import sys, multiflow.tasks.task; print([n for n in sys.modules if n.startswith('multiflow.tasks.vqa.task')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_models_that_a_task_takes_as_they_are_have_a_builder_for_it():
    for name, task in TASKS.items():
        assert {(kind, name) for kind in (*task.models, *task.untrained)} <= set(BUILDERS)


def test_the_score_is_the_best_figure_or_its_substitute():
    task = TASKS["captioning"]
    assert task.score({"BLEU-4": 1.0, "CIDEr": 2.0}) == 2.0
    assert task.score({"CIDEr (words)": 3.0}) == 3.0
    with pytest.raises(MultiflowError, match="task 'captioning' has no figure 'CIDEr' to choose by, only BLEU-4"):
        task.score({"BLEU-4": 1.0})


def test_the_main_figure_is_found_under_either_name():
    task = TASKS["captioning"]
    assert task.main_of({"CIDEr (words)": 3.0, "CIDEr": 2.0}) == "CIDEr"
    assert task.main_of({"BLEU-4 (words)": 1.0, "CIDEr (words)": 3.0}) == "CIDEr (words)"
    with pytest.raises(
        MultiflowError, match="task 'retrieval' has no figure 'mean R@1' to compare by, only none; give"
    ):
        TASKS["retrieval"].main_of({})
