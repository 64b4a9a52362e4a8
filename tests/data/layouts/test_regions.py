from __future__ import annotations

import json

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import Region, open_data
from tests.data.worlds import number_of, write_images, write_json, write_visual_genome


def test_visual_genome(tmp_path):
    path = write_visual_genome(tmp_path, count=3, regions=2)
    for source in (tmp_path, path):
        data = open_data(source)
        assert (data.kind, len(data), data.texts.tolist()) == ("regions", 3, [2, 2, 2])
        assert data[2].regions == (
            Region(("part 0 of 2",), (0.0, 0.0, 4.0, 5.0)),
            Region(("part 1 of 2",), (1.0, 0.0, 4.0, 5.0)),
        )
        assert number_of(data[2].image) == 2


def test_visual_genome_in_its_two_folders(tmp_path):
    path = write_visual_genome(tmp_path, count=3)
    for number, folder in ((0, "VG_100K"), (1, "VG_100K_2")):
        (tmp_path / folder).mkdir()
        (tmp_path / "images" / f"{number}.png").rename(tmp_path / folder / f"{number}.png")
    (tmp_path / "images" / "2.png").unlink()
    data = open_data(path)
    assert [number_of(item.image) for item in data] == [0, 1]
    assert data.skipped == (("2", "no such image file"),)


def test_visual_genome_without_images(tmp_path):
    path = write_visual_genome(tmp_path / "a", count=2)
    (tmp_path / "a" / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(MultiflowError, match=r"none of the 2 images .* such as 0.jpg.*images=DIR"):
        open_data(path)
    assert len(open_data(path, images=tmp_path / "elsewhere")) == 2


def test_visual_genome_ids_may_stand_in_the_regions_only(tmp_path):
    write_images(tmp_path / "images", ["5.png"])
    region = {"x": 0, "y": 0, "width": 2, "height": 2, "phrase": "a thing", "image_id": 5}
    path = write_json(tmp_path / "region_descriptions.json", [{"regions": [region]}])
    assert open_data(path)[0].key == "5.png"


def test_blank_phrases_are_left_out(tmp_path):
    write_images(tmp_path / "images", ["5.png"])
    region = {"x": 0, "y": 0, "width": 2, "height": 2, "phrase": " ", "image_id": 5}
    path = write_json(
        tmp_path / "region_descriptions.json", [{"id": 5, "regions": [region, {**region, "phrase": "a thing"}]}]
    )
    assert len(open_data(path)[0].regions) == 1
    write_json(path, [{"id": 5, "regions": [region]}])
    with pytest.raises(MultiflowError, match=r"captions are missing"):
        open_data(path)


def test_region_list(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    records = [
        {
            "image": "a.png",
            "caption": "everything",
            "elems": [
                {"bb": [1, 2, 3, 4], "caption": ["cat", "animal"], "attributes": ["red", "big"]},
                {"bb": [0, 0, 5, 5.5], "caption": "a dog"},
            ],
        },
        {"image": "b.png", "elems": [{"bb": [0, 0, 5, 5], "caption": "x"}]},
    ]
    data = open_data(write_json(tmp_path / "regions.json", records))
    assert data.texts.tolist() == [3, 1]
    assert data[0].regions == (
        Region(("everything",), None),
        Region(("red cat", "red animal", "big cat", "big animal"), (1.0, 2.0, 3.0, 4.0)),
        Region(("a dog",), (0.0, 0.0, 5.0, 5.5)),
    )


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [1, 2, float("nan"), 4]])
def test_bad_boxes_are_named(tmp_path, box):
    write_images(tmp_path, ["a.png"])
    records = [{"image": "a.png", "elems": [{"bb": box, "caption": "x"}]}]
    with pytest.raises(MultiflowError, match=r"entry 0, elems\[0\].bb.* of '.*regions.json'"):
        open_data(write_json(tmp_path / "regions.json", records))


def test_bad_visual_genome_entries_are_named(tmp_path):
    region = {"x": 0, "y": 0, "width": 2, "phrase": "a thing"}
    path = write_json(tmp_path / "region_descriptions.json", [{"id": 5, "regions": [region]}])
    with pytest.raises(MultiflowError, match=r"entry 0, regions\[0\] of .* has no 'height'"):
        open_data(path)


def test_regions_have_no_splits(tmp_path):
    write_visual_genome(tmp_path)
    with pytest.raises(MultiflowError, match=r"has no splits, so there is no split 'val'"):
        open_data(tmp_path, split="val")


def test_boxes_follow_images_that_were_stored_smaller(tmp_path):
    path = write_visual_genome(tmp_path, count=3, regions=1)
    sizes = [(20, 10), (40, 40), (60, 20)]  # as released; all are stored as 20 x 10
    write_json(
        tmp_path / "image_data.json",
        [{"image_id": i, "width": width, "height": height, "url": "x"} for i, (width, height) in enumerate(sizes)],
    )
    for source in (tmp_path, path):
        assert [item.regions[0].box for item in open_data(source)] == [
            (0, 0, 4, 5),
            (0, 0, 2, 1.25),
            (0, 0, pytest.approx(4 / 3), 2.5),
        ]


def test_blank_phrases_are_skipped_and_named(tmp_path):
    write_images(tmp_path / "images", ["5.png"])
    region = {"x": 0, "y": 0, "width": 2, "height": 2, "phrase": "a thing", "image_id": 5}
    path = write_json(
        tmp_path / "region_descriptions.json", [{"id": 5, "regions": [{**region, "phrase": " "}, region]}]
    )
    assert open_data(path).skipped == (("5, region 0", "no caption"),)
    elements = [{"bb": [0, 0, 2, 2], "caption": text} for text in ("", "a thing", ["", " "])]
    path = write_json(tmp_path / "images" / "list.json", [{"image": "5.png", "elems": elements}])
    data = open_data(path)
    assert len(data[0].regions) == 1
    assert [skip.key for skip in data.skipped] == ["5.png, element 0", "5.png, element 2"]


def test_region_list_as_json_lines(tmp_path):
    write_images(tmp_path, ["a.png"])
    record = {"image": "a.png", "elems": [{"bb": [0, 0, 5, 5], "caption": "x", "attributes": "red"}]}
    (tmp_path / "regions.jsonl").write_text("\n".join([json.dumps(record)] * 2))
    assert [item.regions[0].captions for item in open_data(tmp_path)] == [("red x",)] * 2
