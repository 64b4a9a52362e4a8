from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json
from multiflow.data import BrokenItem, answer_list, answer_weights, open_data
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


def test_weights_are_shares_of_the_people_asked():
    assert answer_weights(["a", "b", "a", "a", "c"]) == {"a": 0.6, "b": 0.2, "c": 0.2}
    assert answer_weights(["one"]) == {"one": 1.0}
    assert answer_weights([]) == {}


def prepared(folder, count=3):
    """The prepared lists: questions of VQA in two splits and of Visual Genome, each with images of its own."""
    write_images(folder / "coco" / "train2014", [f"{i}.png" for i in range(count)])
    write_images(folder / "visual_genome" / "image", ["7.png", "8.png"])
    asked = [
        {"image": f"train2014/{i}.png", "question": f"what is {i}?", "answer": ["red"] * 9 + ["blue"], "dataset": "vqa"}
        for i in range(count)
    ]
    write_json(folder / "vqa_train.json", asked)
    write_json(folder / "vqa_val.json", asked[:1])
    write_json(folder / "vqa_test.json", [{**asked[0], "answer": []} | {"question_id": 4}])
    genome = [{"image": "image/8.png", "question": "where?", "answer": "on a bench", "dataset": "vg"}]
    write_json(folder / "vg_qa.json", genome)
    return folder


def test_prepared_lists_of_one_folder(tmp_path):
    data = open_data(prepared(tmp_path))
    assert [item.question for item in data] == [
        "where?",
        "what is 0?",
        "what is 1?",
        "what is 2?",
    ]  # as files are named
    assert number_of(data[0].image) == 1
    assert number_of(data[3].image) == 2
    assert [item.answers for item in data] == [("on a bench",), *[("red",) * 9 + ("blue",)] * 3]
    assert [data.known(i).texts for i in range(4)] == [item.answers for item in data]
    assert [item.dataset for item in data] == ["vg", "vqa", "vqa", "vqa"]
    assert (len(open_data(tmp_path, split="val")), len(open_data(tmp_path, split="train+val"))) == (1, 5)
    assert open_data(tmp_path, split="test")[0].key == "4"


def test_one_list_with_images_of_two_data_sets(tmp_path):
    folder = prepared(tmp_path)
    both = read_json(folder / "vqa_train.json") + read_json(folder / "vg_qa.json")
    path = write_json(tmp_path / "lists" / "all.json", both)
    assert [number_of(item.image) for item in open_data(path, images=tmp_path)] == [0, 1, 2, 1]


def test_the_answer_list_beside_the_questions(tmp_path):
    data = open_data(prepared(tmp_path))
    assert answer_list(data) == ["red", "on a bench", "blue"]
    assert answer_list(data, most=1) == ["red"]
    write_json(tmp_path / "answer_list.json", ["yes", "no", "yes"])
    assert len(open_data(tmp_path)) == 4
    assert answer_list(open_data(tmp_path)) == ["yes", "no"]
    other = write_json(tmp_path / "other" / "answers.json", ["maybe"])
    assert answer_list(data, other) == ["maybe"]
    with pytest.raises(MultiflowError, match=r"cannot read '.*nowhere.json': No such file"):
        answer_list(data, tmp_path / "nowhere.json")
    with pytest.raises(MultiflowError, match=r"\{'a': 1\}; expected a text or a list"):
        answer_list(data, write_json(other, {"a": 1}))


@pytest.mark.parametrize("content", [[], [" "], ""])
def test_an_empty_answer_list_is_told_from_questions_without_answers(tmp_path, content):
    data = open_data(prepared(tmp_path))
    path = write_json(tmp_path / "answer_list.json", content)
    for given in (None, path):
        with pytest.raises(MultiflowError, match="^'.*answer_list.json' lists no answers"):
            answer_list(data, given)


def test_no_answers_to_choose_from(tmp_path):
    write_vqa(tmp_path, annotations=False)
    with pytest.raises(MultiflowError, match=r"3 questions .* have no answers; give the candidates"):
        answer_list(open_data(tmp_path))


def test_the_answers_of_the_original_files(tmp_path):
    write_vqa(tmp_path)
    data = open_data(tmp_path)
    assert [data.known(i).texts for i in range(len(data))] == [item.answers for item in data]
    assert {item.dataset for item in data} == {""}
    assert answer_list(data) == ["0", "1", "2", "none"]


def test_test_dev_is_a_split_whose_images_are_those_of_test(tmp_path):
    write_vqa(tmp_path, "test2015", annotations=False)
    asked = [{"image_id": 1, "question_id": 10, "question": "what is 1?"}]
    write_json(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {"data_subtype": "test-dev2015", "questions": asked},
    )
    assert len(open_data(tmp_path, split="test")) == 3
    data = open_data(tmp_path, split="test-dev")
    assert number_of(data[0].image) == 1


def test_blank_questions_are_skipped_and_named(tmp_path):
    write_images(tmp_path, ["a.png"])
    records = [{"image": "a.png", "question": q, "answer": "x"} for q in ("what?", " ", "who?")]
    data = open_data(write_json(tmp_path / "vqa.json", records))
    assert [item.question for item in data] == ["what?", "who?"]
    assert data.skipped == (("1", "no question"),)
    assert [data.known(i).texts for i in range(2)] == [("x",), ("x",)]
    with pytest.raises(MultiflowError, match="holds no questions"):
        open_data(write_json(tmp_path / "vqa.json", records[1:2]))
    with pytest.raises(MultiflowError, match="holds no questions"):
        open_data(write_json(tmp_path / "vqa.json", {"questions": []}))


def test_an_unreadable_image_is_a_broken_item(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    records = [{"image": name, "question": "what?", "answer": "x"} for name in ("a.png", "b.png")]
    data = open_data(write_json(tmp_path / "vqa.json", records))
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").unlink()
    for index, reason in enumerate(("not an image file", "No such file")):
        with pytest.raises(BrokenItem, match=reason):
            data[index]
