from __future__ import annotations

import json
import pickle

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.metrics import Figures
from multiflow.tasks.task import TASKS


def test_every_task_is_in_the_table_under_its_name():
    assert {name: task.name for name, task in TASKS.items()} == dict(zip(TASKS, TASKS, strict=True))
    assert len(TASKS) == 5


def test_an_unknown_task_is_named():
    assert "vqq" not in TASKS
    with pytest.raises(MultiflowError, match="unknown task 'vqq'; known: captioning, .*, vqa; did you mean"):
        TASKS["vqq"]


def test_the_score_is_the_best_figure_or_its_substitute():
    task = TASKS["captioning"]
    assert task.score({"BLEU-4": 1.0, "CIDEr": 2.0}) == 2.0
    assert task.score({"CIDEr (words)": 3.0}) == 3.0
    with pytest.raises(MultiflowError, match="'captioning' has no figure 'CIDEr' .*, only BLEU-4"):
        task.score({"BLEU-4": 1.0})


def test_the_main_figure_is_found_under_either_name():
    task = TASKS["captioning"]
    assert task.main_of({"CIDEr (words)": 3.0, "CIDEr": 2.0}) == "CIDEr"
    assert task.main_of({"BLEU-4 (words)": 1.0, "CIDEr (words)": 3.0}) == "CIDEr (words)"
    with pytest.raises(MultiflowError, match="'retrieval' has no figure 'mean R@1' .*, only none"):
        TASKS["retrieval"].main_of({})


def test_figures_are_a_dict_that_knows_each_item():
    figures = Figures({"accuracy": 75.0, "listed": 80.0}, (x for x in (100, 50)))
    assert figures == {"accuracy": 75.0, "listed": 80.0}
    assert figures.each == (100.0, 50.0)
    assert all(type(x) is float for x in figures.each)
    assert json.loads(json.dumps(figures)) == figures


def test_figures_travel_between_processes():
    figures = pickle.loads(pickle.dumps(Figures({"top-1": 50.0}, [0, 100])))
    assert (type(figures), figures, figures.each) == (Figures, {"top-1": 50.0}, (0.0, 100.0))
