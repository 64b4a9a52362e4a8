from __future__ import annotations

import pickle

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from multiflow.data.dataset import BrokenItem, Mixed, Skip, SkipReport, from_memory
from tests.data.worlds import picture, write_images, write_json


def test_a_data_set_is_a_sequence_of_items():
    data = from_memory([(picture(i), f"caption {i}") for i in range(3)])
    assert len(data) == 3
    assert [item.captions for item in data] == [("caption 0",), ("caption 1",), ("caption 2",)]
    assert data[-1].captions == ("caption 2",)
    for index in (3, -4):
        with pytest.raises(IndexError):
            data[index]


def test_several_captions_in_memory():
    assert from_memory([(picture(0), ["one", "two"])])[0].captions == ("one", "two")


def test_memory_must_hold_something():
    with pytest.raises(MultiflowError, match=r"empty list of pairs"):
        from_memory([])


def test_data_sets_travel_to_other_processes(tmp_path):
    write_images(tmp_path, ["a.png"])
    data = open_data(write_json(tmp_path / "list.json", [{"image": "a.png", "caption": "x"}]))
    assert pickle.loads(pickle.dumps(data))[0].captions == ("x",)


def test_a_broken_item_keeps_its_parts_across_processes():
    error = pickle.loads(pickle.dumps(BrokenItem("a.jpg", "cut")))
    assert isinstance(error, MultiflowError)
    assert error.skip == Skip("a.jpg", "cut")
    assert "cannot read 'a.jpg': cut" in str(error)


def test_the_report_names_the_first_five():
    skips = tuple(Skip(f"{i}.jpg", "cut") for i in range(7))
    report = SkipReport(20, skips)
    assert (report.count, report.names) == (7, ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"))
    assert str(report).startswith("7 of 20 items skipped: 0.jpg (cut), 1.jpg (cut)")
    assert str(report).endswith("4.jpg (cut) and 2 more")
    assert str(SkipReport(3)) == "0 of 3 items skipped"


def test_mixed_data_are_as_long_as_their_pairs(tmp_path):
    write_images(tmp_path, ["0.png"])
    described = [{"id": 0, "regions": [REGION]}, {"id": 77, "regions": [REGION]}]
    regions = open_data(write_json(tmp_path / "region_descriptions.json", described))
    mixed = Mixed(from_memory([(picture(0), "x")] * 5), regions)
    assert len(mixed) == 5
    assert mixed.skipped == (Skip("77", "no such image file"),)
    assert "5 pairs" in str(mixed)
    assert "1 regions" in str(mixed)


REGION = {"x": 0, "y": 0, "width": 2, "height": 2, "phrase": "a thing"}
