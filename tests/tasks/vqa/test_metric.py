from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.metrics import vqa_accuracy, write_vqa_results
from multiflow.tasks.vqa import metric as vqa
from tests import golden_data


@pytest.mark.parametrize("case", golden_data.vqa_accuracy(), ids=lambda case: case["prediction"])
def test_equals_the_official_script(case):
    assert mf.metrics.vqa_accuracy(case["prediction"], case["answers"]) == pytest.approx(
        case["accuracy_percent"], abs=0.005
    )


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (9, 100), (10, 100)])
def test_counts_by_hand(agreeing, accuracy):
    """Two agree: of ten choices of nine others, eight hold both (2/3) and two hold one (1/3): 0.6."""
    assert vqa_accuracy("yes", ["yes"] * agreeing + ["no"] * (10 - agreeing)) == pytest.approx(accuracy)


def against(prediction: str, answer: str) -> float:
    """Accuracy where four people say `answer` and six something else, so that the answers are normalised too."""
    return vqa_accuracy(prediction, [answer] * 4 + ["something else"] * 6)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("  YES\n", "yes"),
        ("the dog", "dog"),
        ("a An THE dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("ten zero", "10 0"),
        ("isnt", "isn't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("'ows'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the official list has it the wrong way round
        ("lets", "lets"),
        ("t-shirt", "t shirt"),  # a sign between letters becomes a space
        ("t -shirt", "t shirt"),  # beside a space it goes
        ("red-and -blue", "redand blue"),  # and with it the same sign elsewhere
        ("1,000-2", "10002"),  # a number with a comma: all signs go
        ("1,b", "1 b"),
        ("dog.", "dog"),
        ("3.5", "3.5"),
        ("a.5", "a.5"),  # a period before a digit stays
        ("3.x", "3x"),
        ("50%", "50%"),
        ("10:30", "10:30"),
        ("what?", "what "),  # a sign at the end becomes a space, which stays in the answer alone
    ],
)
def test_normalisation(prediction, answer):
    expected = 0 if answer != answer.strip() else 100
    assert against(prediction, answer) == expected


def test_answers_are_normalised_less_than_the_prediction():
    assert against("yes", "Yes") == 0
    assert against("2", "two") == 0
    assert against("dog", "the dog") == 0
    assert against("isn't", "isnt") == 0
    assert against("stop sign", "stop-sign") == 100  # punctuation goes from both


def test_equal_answers_are_taken_as_they_are():
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0
    assert vqa_accuracy("t-shirt", ["t shirt"] * 10) == 100
    assert vqa_accuracy("dog.", ["dog."] * 10) == 0


def test_only_32_periods_go():
    assert against("." * 40 + "x", "." * 8 + "x") == 0  # the answer's own eight go
    assert vqa_accuracy("." * 40 + "x", ["." * 8 + "x"] * 10) == 100


@given(st.text(max_size=12), st.lists(st.text("aA.,-1 '", max_size=4), min_size=2, max_size=10), st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_people_does_not_matter(prediction, answers, random):
    value = vqa_accuracy(prediction, answers)
    random.shuffle(answers)
    assert 0 <= value <= 100
    assert vqa_accuracy(prediction, answers) == pytest.approx(value)


def test_every_contraction_is_whole_after_one_step():
    assert len(vqa.CONTRACTIONS) == 114
    assert all(whole.replace("'", "") == part.replace("'", "") for part, whole in vqa.CONTRACTIONS.items())
    assert all(whole not in vqa.CONTRACTIONS for whole in vqa.CONTRACTIONS.values())


@pytest.mark.parametrize(
    ("prediction", "answers", "said"),
    [
        ("yes", "yes", "answers='yes'"),
        ("yes", [], "answers=[]"),
        ("yes", ["yes"], "answers=['yes']"),
        ("yes", ["yes", None], "None of type NoneType"),
        (3, ["3"] * 10, "3 of type int"),
    ],
)
def test_bad_input_is_named(prediction, answers, said):
    with pytest.raises(MultiflowError) as error:
        vqa_accuracy(prediction, answers)
    assert said in str(error.value)


def test_a_result_file_as_evalai_takes_it(tmp_path):
    path = write_vqa_results(tmp_path / "new" / "results.json", {262148000: "down", "262148001": "t-shirt é"})
    assert json.loads(path.read_text()) == [
        {"question_id": 262148000, "answer": "down"},
        {"question_id": 262148001, "answer": "t-shirt é"},
    ]


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        ({"q1": "yes"}, "question id 'q1'"),
        ({"-1": "yes"}, "question id '-1'"),
        ({"1\n": "yes"}, r"question id '1\n'"),
        ({True: "yes"}, "question id True"),
        ({1: 2}, "answer 2"),
        ({1: "yes", "1": "no"}, "question id 1 was given twice"),
    ],
)
def test_a_result_file_that_evalai_would_refuse_is_not_written(tmp_path, predictions, said):
    with pytest.raises(MultiflowError) as error:
        write_vqa_results(tmp_path / "results.json", predictions)
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(vqa).failed == 0
