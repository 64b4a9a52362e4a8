from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.data import answer_weights
from multiflow.metrics import vqa_accuracy
from multiflow.tasks.inputs import Pixels
from multiflow.tasks.task import TASKS
from multiflow.tasks.vqa import task as vqa
from multiflow.tasks.vqa.task import RESULTS, answer_questions
from tests.data.worlds import write_images, write_json
from tests.tiny import TOKENIZER, tiny

TASK = TASKS["vqa"]
families = pytest.mark.parametrize("family", ["xvlm", "blip"])


@pytest.fixture(scope="module")
def data(world):
    return TASK.open(world / "vqa", "val", limit=12)


def test_the_answers_to_choose_from_are_those_of_training(world, data):
    train = TASK.open(world / "vqa", "train")
    assert data.choices == train.choices
    assert set(data.choices) == {answer for answers in train.texts for answer in answers}


def test_a_list_beside_the_questions_wins(world, tmp_path):
    for part in ("vqa", "images"):
        shutil.copytree(world / part, tmp_path / part)
    write_json(tmp_path / "vqa" / "answer_list.json", ["no", "yes", "2"])
    for split in ("train", "val"):
        assert TASK.open(tmp_path / "vqa", split).choices == ("no", "yes", "2")
    write_json(tmp_path / "vqa" / "answer_list.json", ["zebra"])
    with pytest.raises(MultiflowError, match=r"none of the \d+ answers in .* is in the list .*begins with 'zebra'"):
        TASK.open(tmp_path / "vqa", "val")


def test_answers_of_a_test_are_never_chosen_from(tmp_path):
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path / "vqa_test.json", [{"image": "a.png", "question": "what?", "answer": ["x", "x"]}])
    with pytest.raises(MultiflowError, match="no answers .*: no answer_list.json"):
        TASK.open(tmp_path, "test")
    write_json(tmp_path / "answer_list.json", ["x", "y"])
    assert TASK.open(tmp_path, "test").choices == ("x", "y")


@families
def test_a_batch_holds_all_answers_with_their_weights(data, family):
    model = tiny(family, "vqa")
    inputs = TASK.inputs(model, TOKENIZER)
    batch = TASK.batch(data, inputs, 5, 1)
    questions = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["input_ids"]]
    answers = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["answer_ids"]]
    found = Counter()
    weights = iter(zip(answers, batch["answer_weights"].tolist(), strict=True))
    for question, count in zip(questions, batch["answers_per_question"].tolist(), strict=True):
        found[question, tuple(sorted((a, round(w, 4)) for a, w in (next(weights) for _ in range(count))))] += 1
    known = {
        (
            TOKENIZER.decode(TOKENIZER(item.question)["input_ids"], skip_special_tokens=True),
            tuple(sorted((a, round(w, 4)) for a, w in answer_weights(item.answers).items())),
        )
        for item in data
    }
    assert set(found) <= known
    assert next(weights, None) is None
    for ids, mask in zip(batch["answer_ids"], batch["answer_mask"], strict=True):
        assert ids[int(mask.sum()) - 1] == TOKENIZER.sep_token_id
    value, _ = TASK.loss(model, batch, 1)
    assert value.isfinite()


@pytest.mark.parametrize(("family", "much"), [("xvlm", 0.5), ("blip", 0.2)])
def test_answers_to_questions_of_visual_genome_count_less(tmp_path, family, much):
    write_images(tmp_path, ["a.png"])
    asked = [
        {"image": "a.png", "question": "what?", "answer": ["red", "red", "blue", "red"], "dataset": "vqa"},
        {"image": "a.png", "question": "where?", "answer": "star", "dataset": "vg"},
        {"image": "a.png", "question": "who?", "answer": "disc"},
    ]
    data = TASK.open(write_json(tmp_path / "vqa_train.json", asked).parent, "train")
    batch = TASK.batch(data, TASK.inputs(tiny(family, "vqa"), TOKENIZER), 3, 0)
    texts = [TOKENIZER.decode(row, skip_special_tokens=True) for row in batch["answer_ids"]]
    found = dict(zip(texts, batch["answer_weights"].tolist(), strict=True))
    assert found == pytest.approx({"red": 0.75, "blue": 0.25, "star": much, "disc": 1.0})


def test_training_needs_answers(tmp_path):
    write_images(tmp_path, ["a.png"])
    path = write_json(tmp_path / "vqa_train.json", [{"image": "a.png", "question": "what?"}])
    write_json(tmp_path / "answer_list.json", ["x", "y"])
    data = TASK.open(path.parent, "train")
    with pytest.raises(MultiflowError, match="question 0 has no answers; train on"):
        TASK.batch(data, TASK.inputs(tiny("xvlm", "vqa"), TOKENIZER), 1, 0)
    with pytest.raises(MultiflowError, match="have no answers to compare with; give save=DIR"):
        TASK.evaluate(tiny("xvlm", "vqa"), TOKENIZER, data)
    figures = TASK.evaluate(tiny("xvlm", "vqa"), TOKENIZER, data, save=tmp_path / "out")
    assert (figures, figures.each) == ({}, ())
    (said,) = json.loads((tmp_path / "out" / RESULTS).read_text())
    assert said["question_id"] == 0
    assert said["answer"] in ("x", "y")


def test_what_a_run_lacks_is_said_before_it_starts(tmp_path, world, data):
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path / "answer_list.json", ["x", "y"])
    for split, answers in (("train", {}), ("val", {"answer": ["x"]})):
        asked = [{"image": "a.png", "question": "what?", **answers}]
        write_json(tmp_path / f"vqa_{split}.json", asked)
    silent, lone = (TASK.open(tmp_path, split) for split in ("train", "val"))
    train = TASK.open(world / "vqa", "train")
    TASK.check(train, train, top=3)
    TASK.check(lone, train)
    with pytest.raises(MultiflowError, match=r"1 of 1 items from .* have no answers; train on .*train_split="):
        TASK.check(silent, data)
    for few in (silent, lone):
        with pytest.raises(MultiflowError, match=r"1 of 1 items from .* fewer than 2 people.*; choose .*val_split="):
            TASK.check(data, few)
    with pytest.raises(MultiflowError, match="fewer than 2 people"):
        TASK.evaluate(None, TOKENIZER, lone, save=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_that_are_not_in_the_list_are_counted_before_a_run_starts(tmp_path, monkeypatch):
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path / "answer_list.json", ["red", "blue"])
    for split, answers in (("train", ["red"]), ("val", ["red", "zebra", "blue", "pink"]), ("test", ["blue", "red"])):
        asked = [{"image": "a.png", "question": "what?", "answer": answers}]
        write_json(tmp_path / f"vqa_{split}.json", asked * 2)
    train, val, test = (TASK.open(tmp_path, split) for split in ("train", "val", "test"))
    said = r"^4 of 8 answers in .*vqa_val.json .*\(50.0%\), such as 'pink', are not among the 2 to choose from$"
    with pytest.warns(UserWarning, match=said):
        TASK.check(train, val)
    TASK.check(train, test)
    monkeypatch.setattr(vqa, "rank", lambda: 1)
    TASK.check(train, val)


@families
def test_answers_are_those_that_the_model_ranks_first_whatever_the_batch(data, family):
    model = tiny(family, "vqa")
    seen = []
    said = answer_questions(model, TOKENIZER, data, batch_size=5, progress=lambda *x: seen.append(x))
    assert said == answer_questions(model, TOKENIZER, data, batch_size=1)
    assert seen == [(5, 12), (10, 12), (12, 12)]
    inputs = TASK.inputs(model, TOKENIZER)
    ids, mask = inputs.encode([item.question for item in data])
    best, _ = model.rank_answers(Pixels(data, inputs)[:], ids, mask, *inputs.encode(data.choices, end=True))
    assert [answer for _, answer in said] == [data.choices[i] for i in best[:, 0].tolist()]
    with pytest.raises(MultiflowError, match="top 0 was given"):
        answer_questions(model, TOKENIZER, data, top=0)


def test_figures_are_the_official_accuracy(data, tmp_path, monkeypatch):
    said = [(item.key, item.answers[0] if i % 2 else "zebra") for i, item in enumerate(data)]
    monkeypatch.setattr(vqa, "answer_questions", lambda *args, **options: said)
    figures = TASK.evaluate(None, TOKENIZER, data, save=tmp_path)
    assert figures["accuracy"] == pytest.approx(50.0)
    upper = [max((vqa_accuracy(c, item.answers) for c in data.choices), default=0.0) for item in data]
    assert figures["listed"] == pytest.approx(sum(upper) / len(upper))
    assert TASK.score(figures) == figures["accuracy"]
    assert TASK.main_of(figures) == "accuracy"
    assert figures.each == tuple(100.0 if i % 2 else 0.0 for i in range(len(data)))
    written = json.loads((tmp_path / RESULTS).read_text())
    assert written == [{"question_id": int(key), "answer": answer} for key, answer in said]
    assert torch.is_grad_enabled()
