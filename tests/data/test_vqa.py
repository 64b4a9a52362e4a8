from __future__ import annotations

import pytest

from multiflow.data import open_data
from multiflow.errors import MultiflowError
from tests.data.worlds import number_of, write_images, write_json


def write_vqa(folder, subset="train2014", count=3, annotations=True):
    write_images(folder / "images" / subset, [f"COCO_{subset}_{i:012d}.jpg" for i in range(count)])
    asked = [{"image_id": i, "question_id": 10 * i, "question": f"what is {i}?"} for i in range(count)]
    path = write_json(
        folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", {"data_subtype": subset, "questions": asked}
    )
    if annotations:
        noted = [
            {"question_id": 10 * i, "image_id": i, "answers": [{"answer": f"{i}"}] * 9 + [{"answer": "none"}]}
            for i in reversed(range(count))
        ]
        write_json(folder / f"v2_mscoco_{subset}_annotations.json", {"annotations": noted})
    return path


def test_questions_with_their_ten_answers(tmp_path):
    path = write_vqa(tmp_path)
    for source in (path, tmp_path):
        data = open_data(source)
        item = data[2]
        assert (data.kind, len(data)) == ("questions", 3)
        assert (item.question, item.answers, item.key) == ("what is 2?", ("2",) * 9 + ("none",), "20")
        assert number_of(item.image) == 2


def test_splits_are_files_of_their_own(tmp_path):
    write_vqa(tmp_path)
    write_vqa(tmp_path, "val2014", count=2)
    assert (len(open_data(tmp_path)), len(open_data(tmp_path, split="val"))) == (3, 2)
    with pytest.raises(MultiflowError, match=r"split 'test' is unknown in .* one of train, val"):
        open_data(tmp_path, split="test")


def test_questions_without_annotations(tmp_path):
    write_vqa(tmp_path, annotations=False)
    assert open_data(tmp_path)[0].answers == ()


def test_a_question_without_answer_is_named(tmp_path):
    write_vqa(tmp_path)
    write_json(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": []})
    with pytest.raises(MultiflowError, match=r"question 0 of .* has no answer in"):
        open_data(tmp_path)


def test_images_may_be_named_by_number_alone(tmp_path):
    path = write_vqa(tmp_path / "a")
    write_images(tmp_path / "numbers", ["0.jpg", "1.jpg", "2.jpg"])
    assert number_of(open_data(path, images=tmp_path / "numbers")[1].image) == 1


def test_plain_question_list(tmp_path):
    write_images(tmp_path, ["a.png"])
    records = [
        {"image": "a.png", "question": "what?", "answer": ["red", "blue"], "dataset": "vqa"},
        {"image": "a.png", "question": "who?", "answer": "me", "question_id": 5},
        {"image": "a.png", "question": "where?"},
    ]
    data = open_data(write_json(tmp_path / "vqa.json", records))
    assert [(item.question, item.answers, item.key) for item in data] == [
        ("what?", ("red", "blue"), "0"),
        ("who?", ("me",), "5"),
        ("where?", (), "2"),
    ]
