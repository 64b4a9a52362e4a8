from __future__ import annotations

import shutil
from pathlib import Path

from multiflow.cli.show_data import data_sets
from tests.cli.conftest import Run
from tests.cli.test_show import cells


def test_a_whole_world(run: Run, world: Path) -> None:
    ran = run("show", "data", world)
    assert ran.code == 0
    counted = {(Path(row[0]).parent.name, row[2]): (row[3], row[4]) for row in cells(ran.out) if len(row) == 6}
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


def test_nothing_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no data found in 'empty'" in run("show", "data", "empty").error
