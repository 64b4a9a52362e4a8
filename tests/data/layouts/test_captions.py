from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from tests.data.worlds import number_of, write_images, write_json, write_karpathy

SPLITS = ["train", "val", "restval", "test", "train"]


def ids(data):
    return [int(pair.captions[0].split()[1]) for pair in data]


def test_karpathy_splits(tmp_path):
    path = write_karpathy(tmp_path, SPLITS)
    assert ids(open_data(path)) == ids(open_data(path, split="train")) == [0, 2, 4]
    assert ids(open_data(path, split="restval")) == [2]
    assert ids(open_data(path, split="val")) == [1]
    assert ids(open_data(path, split="all")) == [0, 1, 2, 3, 4]
    pair = open_data(tmp_path, split="test")[0]
    assert pair.captions == tuple(f"caption 3 {j}" for j in range(5))
    assert number_of(pair.image) == 3
    with pytest.raises(MultiflowError, match=r"split 'testt' is unknown.*did you mean 'test'"):
        open_data(path, split="testt")


def test_karpathy_images_elsewhere_or_without_their_folder(tmp_path):
    path = write_karpathy(tmp_path / "a", SPLITS)
    lists = tmp_path / "b" / "dataset_coco.json"
    lists.parent.mkdir()
    path.rename(lists)
    with pytest.raises(MultiflowError, match=r"none of the 3 images .*images=DIR"):
        open_data(lists)
    assert len(open_data(lists, images=tmp_path / "a")) == 3
    assert number_of(open_data(lists, images=tmp_path / "a" / "val2014")[2].image) == 4


def test_karpathy_entries_are_checked(tmp_path):
    write_json(tmp_path / "dataset_x.json", {"images": [{"sentences": [], "split": "train"}]})
    with pytest.raises(MultiflowError, match=r"images\[0\] of '.*dataset_x.json' has no 'filename'"):
        open_data(tmp_path)


def test_plain_list(tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png"])
    records = [
        {"image": "a.png", "caption": "one", "image_id": 7},
        {"image": "b.png", "caption": ["two", "three"]},
        {"image": "b.png", "caption": "  "},
    ]
    data = open_data(write_json(tmp_path / "list.json", records))
    assert [pair.captions for pair in data] == [("one",), ("two", "three")]
    assert number_of(data[1].image) == 1
    assert data.skipped == (("b.png", "no caption"),)


def test_plain_list_as_json_lines(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "caption": "one"}\n' * 3)
    assert len(open_data(tmp_path)) == 3


def test_plain_list_without_captions(tmp_path):
    write_images(tmp_path, ["a.png"])
    path = write_json(tmp_path / "list.json", [{"image": "a.png", "url": "x"}])
    with pytest.raises(MultiflowError, match=r"entry 0 .*list.json' .*'caption' \(it has 'image', 'url'\)"):
        open_data(path)
    write_json(path, [{"image": "a.png", "caption": ""}])
    with pytest.raises(MultiflowError, match=r"captions are missing: none of the 1 images"):
        open_data(path)
    write_json(path, [{"image": "a.png", "caption": 3}])
    with pytest.raises(MultiflowError, match=r"entry 0, caption of .*: expected str or list or null, got int"):
        open_data(path)


def test_list_files_of_splits(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    for split, name in (("train", "a.png"), ("val", "b.png")):
        write_json(tmp_path / f"coco_karpathy_{split}.json", [{"image": name, "caption": split}])
    assert open_data(tmp_path)[0].captions == ("train",)
    assert open_data(tmp_path, split="val")[0].captions == ("val",)
    with pytest.raises(MultiflowError, match=r"one of train, val"):
        open_data(tmp_path, split="test")


def test_image_folder_with_captions_json(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    write_json(tmp_path / "captions.json", {"b.png": "two", "a.png": ["one", "uno"]})
    assert [pair.captions for pair in open_data(tmp_path)] == [("two",), ("one", "uno")]
    write_json(tmp_path / "captions.json", [{"image": "a.png", "caption": "one"}])
    assert open_data(tmp_path)[0].captions == ("one",)


@pytest.mark.parametrize(
    "text",
    [
        "a.png\tone, two\nb.png\tthree\na.png\tfour\n",
        'image,caption\na.png,"one, two"\nb.png,three\na.png,four\n',
        "a.png#0\tone, two\nb.png#0\tthree\na.png#1\tfour\n",
        "a.png,one, two\nb.png,three\na.png,four",
    ],
)
def test_image_folder_with_captions_txt(tmp_path, text):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "captions.txt").write_text(text)
    data = open_data(tmp_path)
    assert [pair.key for pair in data] == ["a.png", "b.png"]
    assert [[" ".join(c.split()) for c in pair.captions] for pair in data] == [["one, two", "four"], ["three"]]


@pytest.mark.parametrize("line", ["a.png\t", "a.png", "a.png \t  "])
def test_lines_without_a_caption_are_skipped_and_named_by_their_number(tmp_path, line):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.txt").write_text(f"a.png\tone\n\n{line}\na.png\ttwo, three\n")
    data = open_data(tmp_path)
    assert data[0].captions == ("one", "two, three")
    assert data.skipped == (("line 3", "no caption of a.png"),)


def test_text_beside_each_image(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "a.txt").write_text("one\nuno\n")
    (tmp_path / "c.txt").write_text("three")
    data = open_data(tmp_path)
    assert [pair.captions for pair in data] == [("one", "uno"), ("three",)]
    assert data.skipped == (("b.png", "no readable caption file b.txt"),)


def test_images_without_any_caption(tmp_path):
    write_images(tmp_path, ["a.png"])
    with pytest.raises(MultiflowError, match=r"captions are missing: .* holds images but neither"):
        open_data(tmp_path)


def test_names_that_lead_out_of_the_folder(tmp_path):
    write_images(tmp_path, ["data/a.png", "b.png"])
    records = [{"image": "a.png", "caption": "x"}, {"image": "../b.png", "caption": "y"}]
    with pytest.raises(MultiflowError, match="'../b.png', outside"):
        open_data(write_json(tmp_path / "data" / "list.json", records))


def test_paths_may_be_strings_and_start_at_home(tmp_path, monkeypatch):
    write_karpathy(tmp_path, SPLITS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_data("~/dataset_coco.json")) == len(open_data(str(tmp_path))) == 3
    assert Path(open_data("~").source).name == "dataset_coco.json"


HEADERS = ["image,caption", "file_name;text", "img\tsentence", "id,caption,image_path", "Image,Extra,Description"]


@pytest.mark.parametrize("header", HEADERS)
def test_tables_with_a_header_tell_their_columns(tmp_path, header):
    write_images(tmp_path, ["a.png", "b.png"])
    delimiter = next(sign for sign in "\t;," if sign in header)
    lines = [header]
    for name in ("a.png", "b.png"):
        cells = {"image": name, "file_name": name, "img": name, "image_path": name, "id": "7", "extra": "x"}
        lines.append(delimiter.join(cells.get(column.lower(), f"of {name}") for column in header.split(delimiter)))
    (tmp_path / ("data.tsv" if delimiter == "\t" else "data.csv")).write_text("\r\n".join(lines) + "\r\n")
    assert [(pair.key, *pair.captions) for pair in open_data(tmp_path)] == [
        ("a.png", "of a.png"),
        ("b.png", "of b.png"),
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_columns_of_other_names_are_told_by_the_user(tmp_path, suffix):
    write_images(tmp_path, ["a.png"])
    text = "foto,alt\na.png,one\n" if suffix == "csv" else '{"foto": "a.png", "alt": "one"}\n'
    (tmp_path / f"data.{suffix}").write_text(text)
    assert open_data(tmp_path, image_column="foto", text_column="alt")[0].captions == ("one",)
    with pytest.raises(MultiflowError, match="column of .* 'fotto'; known: foto, alt; did you mean 'foto'"):
        open_data(tmp_path, image_column="fotto", text_column="alt")


def test_conversations_give_what_the_assistant_says(tmp_path):
    write_images(tmp_path, ["a.png"])
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    records = [{"id": "x", "image": "a.png", "conversations": turns}, {"id": "y", "conversations": turns}]
    data = open_data(write_json(tmp_path / "llava.json", records))
    assert [pair.captions for pair in data] == [("a dog",)]
    assert data.skipped == (("y", "no image"),)


def test_messages_of_chat_templates_are_conversations_too(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    asked = [{"type": "image"}, {"type": "text", "text": "what?"}]
    one = [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}]
    two = [{"role": "user", "content": "<image>and?"}, {"role": "assistant", "content": "a cat"}]
    records = [{"images": ["a.png"], "messages": [*one, *two]}, {"images": ["a.png", "b.png"], "messages": one}]
    data = open_data(write_json(tmp_path / "chat.json", records))
    assert [(pair.prompts, pair.captions) for pair in data] == [(("what?", "and?"), ("a dog", "a cat"))]
    assert data.skipped == (("1", "it has 2 images"),)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_of_questions(tmp_path, suffix):
    write_images(tmp_path, ["a.png", "b.png"])
    rows = [
        ("image", "question", "answer"),
        ("a.png", "what?", "a dog"),
        ("a.png", "what?", "dog"),
        ("b.png", "how many?", "2"),
    ]
    split = "," if suffix == "csv" else "\t"
    (tmp_path / f"q.{suffix}").write_text("\n".join(split.join(row) for row in rows) + "\nb.png\n")
    data = open_data(tmp_path / f"q.{suffix}")
    assert (data.kind, [(item.question, item.answers) for item in data]) == (
        "questions", [("what?", ("a dog", "dog")), ("how many?", ("2",))]
    )  # fmt: skip
    assert data.skipped[0].reason == "it has 1 cells; the header names 3"
    assert open_data(tmp_path / f"q.{suffix}", text_column="answer").kind == "pairs"


def test_a_list_of_questions_with_other_keys(tmp_path):
    write_images(tmp_path, ["a.png"])
    file = write_json(tmp_path / "q.json", [{"img": "a.png", "question": "what?", "answers": ["a dog", "dog"]}])
    assert open_data(file)[0].answers == ("a dog", "dog")


def test_a_layout_from_outside_is_asked_too(tmp_path):
    from multiflow.data.layouts import LAYOUTS, DataLayout

    (tmp_path / "a.mine").write_text("x")
    wanted = open_data(write_karpathy(tmp_path / "b", ["train"]))
    LAYOUTS.add("mine", DataLayout("*.mine", lambda place: place.path.suffix == ".mine", lambda place: wanted, order=1))
    try:
        assert open_data(tmp_path / "a.mine") is wanted
    finally:
        LAYOUTS._records.pop("mine")  # there is no way out of a registry but for tests


@pytest.mark.parametrize(
    ("table", "captions", "skipped"),
    [
        ("image,caption\n1.png,a dog, a cat\n2.png,fine\n", ["a dog, a cat", "fine"], []),
        ("image|caption\n1.png|a|b\n2.png|c\n", ["a|b", "c"], []),
        ("caption,image\na dog, a cat,1.png\nfine,2.png\n", ["fine"], ["line 2"]),
        ("image,caption,n\n1.png,a dog,3\n2.png,a, b,3\n", ["a dog"], ["line 3"]),
        ("image,caption\r1.png,one\r2.png,two\r", ["one", "two"], []),
    ],
)
def test_rows_with_more_cells_than_columns_lose_no_words(table, captions, skipped, tmp_path):
    write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "captions.csv").write_text(table, newline="")
    data = open_data(tmp_path)
    assert [data[i].captions for i in range(len(data))] == [(caption,) for caption in captions]
    assert [skip.key for skip in data.skipped] == skipped


@pytest.mark.parametrize(
    "header", ["image,caption,caption", "Image,image,caption", "caption,id,image,Caption", "image, caption,caption "]
)
def test_a_column_that_is_there_twice_is_not_chosen_in_silence(header, tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").write_text(f"{header}\na.png,one,two,three\n")
    with pytest.raises(MultiflowError, match="has 2 columns called '(image|caption)'"):
        open_data(tmp_path)


@pytest.mark.parametrize("header", ["id,id,image,caption", ",,image,caption", "x,X,image,caption"])
def test_other_columns_that_are_there_twice_move_no_cell(header, tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "captions.csv").write_text(f"{header}\nb.png,two,a.png,one\n")
    (item,) = open_data(tmp_path)
    assert (item.key, item.captions) == ("a.png", ("one",))


@pytest.mark.parametrize("suffix", ["json", "JSON", "jsonl", "JSONL"])
def test_a_key_that_is_given_twice_is_refused_unless_both_say_the_same(suffix, tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    entry = '{"image": "a.png", "image": "%s", "caption": "one"}'
    form = "[%s]" if suffix.lower() == "json" else "%s"
    (tmp_path / f"a.{suffix}").write_text(form % (entry % "a.png"))
    assert [item.key for item in open_data(tmp_path / f"a.{suffix}")] == ["a.png"]
    (tmp_path / f"a.{suffix}").write_text(form % (entry % "b.png"))
    with pytest.raises(MultiflowError, match="the key 'image' twice"):
        open_data(tmp_path / f"a.{suffix}")
