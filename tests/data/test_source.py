from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data import Dataset, Mixed, open_data
from multiflow.worlds.shapes.write import write
from tests.data.worlds import samples, write_images, write_json, write_karpathy, write_shard, write_visual_genome


def test_a_folder_of_shards_or_one_shard(tmp_path):
    paths = [write_shard(tmp_path / f"{i:05d}.tar", samples(range(i, i + 2))) for i in range(2)]
    write_json(tmp_path / "00000_stats.json", {"count": 2})
    assert len(open_data(tmp_path)) == 4
    assert len(open_data(paths[0])) == 2
    assert open_data(tmp_path).layout == "tar shards of img2dataset"


def test_pairs_and_regions_side_by_side_are_mixed(tmp_path):
    write_shard(tmp_path / "cc3m" / "00000.tar", samples(range(3)))
    write_visual_genome(tmp_path / "vg", count=2)
    data = open_data(tmp_path)
    assert isinstance(data, Mixed)
    assert (len(data.pairs), len(data.regions)) == (3, 2)


def test_a_list_of_pairs_and_a_list_of_regions_are_mixed(tmp_path):
    write_images(tmp_path, ["a.png"])
    write_json(tmp_path / "pairs.json", [{"image": "a.png", "caption": "x"}])
    write_json(tmp_path / "regions.json", [{"image": "a.png", "elems": [{"bb": [0, 0, 1, 1], "caption": "y"}]}])
    write_json(tmp_path / "config.json", {"other": "things"})
    assert isinstance(open_data(tmp_path), Mixed)


def test_held_out_data_are_left_out_of_a_mix(tmp_path):
    write_shard(tmp_path / "cc3m" / "00000.tar", samples(range(3)))
    write_visual_genome(tmp_path / "vg", count=2)
    write_karpathy(tmp_path / "held_out", ["val", "test"])
    assert isinstance(open_data(tmp_path), Mixed)
    data = open_data(tmp_path, split="test")
    assert isinstance(data, Dataset)
    assert len(data) == 1
    with pytest.raises(MultiflowError, match=r"split 'other'"):
        open_data(tmp_path, split="other")


def test_several_data_sets_must_be_told_apart(tmp_path):
    write_shard(tmp_path / "a" / "00000.tar", samples(range(3)))
    write_shard(tmp_path / "b" / "00000.tar", samples(range(2)))
    with pytest.raises(
        MultiflowError,
        match=r"several data sets; .*A\+B: 3 pairs .*a .*; 2 pairs",
    ):
        open_data(tmp_path)


def test_nothing_found_says_what_is_usual_and_where_all_layouts_are_listed(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    for source in (tmp_path, tmp_path / "notes.md"):
        with pytest.raises(MultiflowError, match="no data found in") as error:
            open_data(source)
        assert "'multiflow show layouts' lists all" in str(error.value)
        assert len(str(error.value)) < 400 + len(str(source))


def test_a_header_of_unknown_names_is_no_row(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    table = tmp_path / "odd.csv"
    table.write_text("photo,alt\n0.png,a blue square\n")
    with pytest.raises(MultiflowError, match=r"odd.csv' \('photo', 'alt'\) .*image_column=NAME and text_column=NAME"):
        open_data(table)
    (pair,) = open_data(table, image_column="photo", text_column="alt")
    assert pair.captions == ("a blue square",)
    table.write_text("0.png,a blue square\n0.png,the same\n")  # without a header, as before
    assert open_data(table)[0].captions == ("a blue square", "the same")


def test_a_folder_that_was_looked_in_is_named_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("image,caption\n0.png,a blue square\n")
    with pytest.raises(MultiflowError, match=r"none of the 1 images") as error:
        open_data("a.csv")
    assert str(error.value).count(f"'{tmp_path}'") == 1


def test_a_missing_path_suggests_a_neighbour(tmp_path):
    (tmp_path / "pretrain").mkdir()
    with pytest.raises(MultiflowError, match=r"no such file or folder; did you mean 'pretrain'"):
        open_data(tmp_path / "pretrian")


def test_json_of_another_kind(tmp_path):
    path = write_json(tmp_path / "a.json", {"weights": 3})
    with pytest.raises(MultiflowError, match=r"no data found in"):
        open_data(path)


def test_bad_json_in_a_folder_is_named(tmp_path):
    (tmp_path / "dataset_coco.json").write_text('{"images": [')
    with pytest.raises(MultiflowError, match=r"dataset_coco.json' is not valid JSON: .* line 1, column 13"):
        open_data(tmp_path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shapes") / "out", train=12, val=3, test=2, shard_size=8)


def test_shapes_as_written(shapes):
    data = open_data(shapes / "pretrain")
    assert isinstance(data, Mixed)
    assert (len(data.pairs), len(data.regions)) == (12, 6)
    assert data.pairs[0].image.size == data.regions[0].image.size == (64, 64)
    assert not data.skipped
    assert len(open_data(next(shapes.rglob("coco_plain")), split="test")) == 2
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        pictures = open_data(shapes / "coco", split=split)
        assert len(pictures) == count
        assert all(len(pair.captions) == 5 for pair in pictures)
    questions = open_data(shapes / "vqa")
    assert len(questions) == 30
    assert len(questions[0].answers) == 10
    with pytest.raises(MultiflowError, match=r"several data sets"):
        open_data(shapes)
