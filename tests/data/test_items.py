from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from multiflow.data.dataset import from_memory, join
from multiflow.data.items import entries_of, missing_images, open_items, take_items
from tests.data.worlds import number_of, picture, samples, write_images, write_json, write_shard


def karpathy(folder, count=8, missing=()):
    names = [f"{i}.png" for i in range(count)]
    write_images(folder, names)
    for i in missing:
        (folder / names[i]).unlink()
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": f"{name} one"}] * (1 + i % 2)}
        for i, name in enumerate(names)
    ]
    return write_json(folder / "dataset_x.json", {"images": images})


def opened(path, **options):
    return open_items("retrieval", "pairs", path, "test", **options)


def test_items_and_their_texts(tmp_path):
    data = opened(karpathy(tmp_path))
    assert [number_of(item.image) for item in data] == list(range(8))
    assert data.texts == tuple(item.captions for item in data)
    assert data.pairs == sum(map(len, data.texts)) == 12
    assert [data.pair(n)[0] for n in range(5)] == [0, 1, 1, 2, 3]
    assert all(data.pair(n)[1] in data.texts[data.pair(n)[0]] for n in range(12))
    assert str(data).startswith("8 items from")


def test_missing_images_are_counted_and_the_first_five_named(tmp_path):
    path = karpathy(tmp_path, missing=(1, 2, 3, 4, 6, 7))
    with pytest.raises(MultiflowError) as raised:
        opened(path)
    said = str(raised.value)
    assert said.startswith("6 of 8 items of ")
    assert "1.png (no such file), 2.png (no such file), 3.png" in said
    assert "6.png (no such file) and 1 more; " in said
    assert "skip_missing=True" in said


def test_missing_images_are_left_out_where_that_is_allowed(tmp_path):
    data = opened(karpathy(tmp_path, missing=(1, 3)), skip_missing=True)
    assert [number_of(item.image) for item in data] == [0, 2, 4, 5, 6, 7]
    assert [item.captions for item in data] == list(data.texts)
    assert [skip.key for skip in data.skipped] == ["1.png", "3.png"]


def test_the_limit_comes_first(tmp_path):
    data = opened(karpathy(tmp_path, missing=(3,)), limit=3)
    assert (len(data), data.skipped) == (3, ())
    with pytest.raises(MultiflowError, match="limit 0 was given"):
        opened(tmp_path, limit=0)


def test_without_any_image_nothing_can_be_left_out(tmp_path):
    path = karpathy(tmp_path)
    data = open_data(path, split="test")
    for i in range(8):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(MultiflowError, match="8 of 8 items") as raised:
        take_items(data, skip_missing=True)
    assert "skip_missing" not in str(raised.value)


def test_captions_that_are_empty_are_an_error_that_names_them(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    path = write_json(tmp_path / "captions.json", {"a.png": "a dog", "b.png": " "})
    with pytest.raises(MultiflowError, match=r"1 of 2 items of .*: b.png \(no caption\)"):
        open_items("retrieval", "pairs", path, "all")
    assert len(open_items("retrieval", "pairs", path, "all", skip_missing=True)) == 1


def test_data_of_another_kind(world, tmp_path):
    with pytest.raises(MultiflowError, match="'retrieval' takes .*captions, .* 30 questions"):
        open_items("retrieval", "pairs", world / "vqa", "train")
    with pytest.raises(MultiflowError, match="task 'vqa' takes questions about images.*such as .*\"question\""):
        open_items("vqa", "questions", world / "coco", "test")


def test_a_layout_that_lacks_something_is_named(tmp_path):
    path = write_json(tmp_path / "x.json", {"images": [{"sentences": [], "filename": "a.png"}]})
    with pytest.raises(MultiflowError, match=r"images\[0\] .*'split' \(it has 'sentences', 'filename'\)"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "dataset_x.json",
            {"images": [{"filename": "a.png", "split": "test"}]},
            r"images\[0\] of .* has no 'sentences'",
        ),
        ("dataset_x.json", {"pictures": []}, r"dataset_x.json' has no 'images' \(it has 'pictures'\)"),
        ("dataset_x.json", ["a", "b"], "dataset_x.json' does not fit its layout: expected object, got list"),
        ("pairs.json", [{"foto": "a.png", "caption": "x"}], r"\('pairs.json' holds a list of \{foto, caption\}\)"),
        ("pairs.json", [], r"\('pairs.json' holds list\)"),
    ],
)
def test_a_wrong_layout_is_told_with_an_example(tmp_path, name, content, said):
    path = write_json(tmp_path / name, content)
    for source in (path, tmp_path):
        with pytest.raises(MultiflowError, match=rf"{said}.*; an example: dataset_coco.json: "):
            opened(source)


def test_a_path_that_leaves_the_folder_is_refused(tmp_path):
    images = [{"filename": "../../secret.png", "split": "test", "sentences": [{"raw": "x"}]}]
    path = write_json(tmp_path / "in" / "dataset_x.json", {"images": images})
    write_images(tmp_path, ["secret.png"])
    with pytest.raises(MultiflowError, match="outside of the data folder"):
        opened(path, images=tmp_path / "in")


def test_data_without_splits_are_taken_whole_when_asked_to(tmp_path):
    write_images(tmp_path, ["a.png"])
    path = write_json(tmp_path / "pairs.json", [{"image": "a.png", "caption": "a dog"}])
    assert len(open_items("retrieval", "pairs", path, "all")) == 1
    with pytest.raises(MultiflowError, match="has no splits, .* no split 'test'; take it whole with split=all"):
        opened(path)


def test_shards_are_read_for_their_texts(tmp_path):
    path = write_shard(tmp_path / "0.tar", samples(range(3)))
    data = open_items("captioning", "pairs", path, "all")
    assert data.texts == (("picture 0",), ("picture 1",), ("picture 2",))
    assert missing_images(open_data(path)) == []


def test_the_questions_of_a_world_with_their_answers(world):
    data = open_items("vqa", "questions", world / "vqa", "val")
    assert data.texts == tuple(item.answers for item in data)


def test_joined_sources_know_their_texts_and_files(tmp_path):
    a, b = karpathy(tmp_path / "a", missing=(1,)), karpathy(tmp_path / "b", count=2)
    data = open_data(f"{a}+{b}", split="test")
    assert [entry.texts for entry in entries_of(data)][8:] == [("0.png one",), ("1.png one",) * 2]
    assert [skip.key for skip in missing_images(data)] == ["1.png"]


def test_of_joined_sources_only_those_without_files_are_read(tmp_path, monkeypatch):
    path, shard = karpathy(tmp_path / "a", count=2), write_shard(tmp_path / "b.tar", samples(range(2)))
    data = join([open_data(path, split="test"), open_data(shard)])
    monkeypatch.setattr("multiflow.data.images.load_image", None)  # a call would fail
    assert [data.known(i) is None for i in range(4)] == [False, False, True, True]
    assert [entry.texts for entry in entries_of(data)[1:]] == [("1.png one",) * 2, ("picture 0",), ("picture 1",)]
    assert missing_images(data) == []


def test_missing_images_of_regions_and_questions(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    regions = [{"image": name, "elems": [{"bb": [1, 1, 5, 5], "caption": "x"}]} for name in ("a.png", "c.png")]
    asked = [{"image": name, "question": "what?", "answer": "x"} for name in ("d.png", "a.png", "d.png")]
    for name, content, lacking in (("regions.json", regions, "c.png"), ("vqa.json", asked, "d.png")):
        data = open_data(write_json(tmp_path / "lists" / name, content), images=tmp_path)
        assert missing_images(data) == [(lacking, "no such file")]  # once


@pytest.mark.parametrize(("part", "split"), [("coco", "test"), ("vqa", "val"), ("pretrain/vg", None)])
def test_no_image_of_a_file_is_opened_for_its_texts(world, monkeypatch, part, split):
    data = open_data(world / part, split=split)

    def refuse(path, key):
        raise AssertionError(path)

    monkeypatch.setattr("multiflow.data.images.load_image", refuse)
    assert len(entries_of(data)) == len(data)
    assert missing_images(data) == []


def test_images_in_memory_are_read():
    data = take_items(from_memory([(picture(1), "one"), (picture(2), ["two", "zwei"])]))
    assert data.texts == (("one",), ("two", "zwei"))
