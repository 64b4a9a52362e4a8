from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from multiflow.cli.show import data_sets
from tests.cli.conftest import Run
from tests.cli.test_show import cells
from tests.data.worlds import write_images
from tests.families.automatic.speech import write_tones


def test_a_whole_world(run: Run, world: Path) -> None:
    ran = run("show", "data", world)
    assert ran.code == 0
    counted = {(Path(row[0]).parent.name, row[2]): (row[3], row[4]) for row in cells(ran.out) if len(row) == 7}
    assert counted[("coco", "train")] == ("pairs", "12")
    assert counted[("coco", "val")] == ("pairs", "4")
    assert counted[("coco", "test")] == ("pairs", "4")
    assert counted[("pretrain", "-")] == ("pairs", "24")
    assert counted[("vg", "-")] == ("regions", "12")
    assert counted[("vqa", "train")] == ("questions", "60")
    assert "32 x 32 pixels" in ran.out
    assert "box " in ran.out
    assert "? " in ran.out


def test_counts_are_those_of_the_loaders(world: Path) -> None:
    found = data_sets(world / "coco")
    assert [(split, len(data)) for split, data in found] == [("train", 12), ("val", 4), ("test", 4)]


def test_pairs_and_regions_side_by_side_are_listed_apart(world: Path, tmp_path: Path) -> None:
    for part in ("cc3m", "vg"):
        shutil.copytree(world / "pretrain" / part, tmp_path / part)
    assert [(split, data.kind) for split, data in data_sets(tmp_path)] == [("", "pairs"), ("", "regions")]


def test_a_broken_sample_is_named(run: Run, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "pretrain" / "vg", tmp_path / "vg")
    (tmp_path / "vg" / "images" / "1.jpg").write_bytes(b"no image")
    ran = run("show", "data", tmp_path / "vg")
    assert ran.code == 0
    assert "1.jpg: not an image file" in ran.out


def test_a_folder_of_images_elsewhere(run: Run, world: Path, tmp_path: Path) -> None:
    shutil.copy(world / "coco" / "dataset_coco.json", tmp_path)
    assert "--images" in run("show", "data", "dataset_coco.json").error
    assert run("show", "data", "dataset_coco.json", "--images", world / "images").code == 0


def test_missing_images_are_counted_and_named(run: Run, world: Path, tmp_path: Path) -> None:
    for part in ("coco", "vqa", "images"):
        shutil.copytree(world / part, tmp_path / "w" / part)
    gone = sorted((tmp_path / "w" / "images" / "train2014").iterdir())[:7]
    for path in gone:
        path.unlink()
    ran = run("show", "data", tmp_path / "w")
    assert ran.code == 0
    rows = {(Path(row[0]).parent.name, row[2]): row[6] for row in cells(ran.out) if len(row) == 7}
    assert (rows[("coco", "train")], rows[("coco", "val")], rows[("vqa", "train")]) == ("7", "0", "7")
    listed = ", ".join(f"{path.name} (no such file)" for path in gone[:5])
    assert ran.out.count(f"7 missing: {listed} and 2 more") == 2


def test_a_split_that_cannot_be_opened_is_told_after_the_others(run: Run, world: Path, tmp_path: Path) -> None:
    for part in ("coco", "images"):
        shutil.copytree(world / part, tmp_path / "w" / part)
    file = tmp_path / "w" / "coco" / "dataset_coco.json"
    held = json.loads(file.read_text())
    next(image for image in held["images"] if image["split"] == "train")["filename"] = "/etc/hostname"
    file.write_text(json.dumps(held))
    for place in ("w", "w/coco"):
        ran = run("show", "data", place)
        assert ran.code == 2
        assert [row[2] for row in cells(ran.out) if len(row) == 7][1:] == ["val", "test"]
        assert ran.err.startswith("multiflow: error: split 'train' cannot be opened: 'w/coco/dataset_coco.json' names")
        assert "'/etc/hostname', outside of the data folder" in ran.err
        assert ran.err.count("\n") == 1


def test_labelled_images(run: Run, tmp_path: Path) -> None:
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "pets" / split / name, [f"{i}.png" for i in range(count)])
    ran = run("show", "data", "pets")
    assert ran.code == 0
    rows = [row[1:] for row in cells(ran.out) if len(row) == 7][1:]
    assert rows == [["2 classes", "train", "pairs", "4", "0", "0"], ["2 classes", "test", "pairs", "2", "0", "0"]]
    assert "cat/0.png, 20 x 10 pixels" in ran.out
    whole = run("show", "data", tmp_path / "pets" / "train")
    assert [row[1:5] for row in cells(whole.out) if len(row) == 7][1:] == [["2 classes", "all", "pairs", "4"]]


def test_nothing_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no data found in 'empty'" in run("show", "data", "empty").error


def test_clips_are_described_by_length_rate_and_words(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    write_tones(tmp_path / "tones", {"a.wav": "hello there", "b.flac": "yes"})
    ran = run("show", "data", tmp_path / "tones")
    assert ran.code == 0
    assert "clips" in ran.out
    assert "a.wav, 0.2 seconds at 16000 Hz" in ran.out
    assert "hello there" in ran.out
