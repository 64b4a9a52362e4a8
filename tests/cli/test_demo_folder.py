from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from multiflow import MultiflowError
from multiflow.cli.demo_folder import replaced_folder


def write_demo(folder: Path, mark: str) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "m.safetensors").write_text(mark)
    (folder / "report.html").write_text(mark)
    (folder / "demo.json").write_text(json.dumps({"files": {"masks/m.safetensors": len(mark)}}))


def everything(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_nothing_is_there_before_all_is_there(tmp_path):
    out = tmp_path / "runs" / "demo"
    with replaced_folder(out) as folder:
        write_demo(folder, "first")
        assert not out.exists()
        assert folder.parent == out.parent  # on the same disk, so that renaming is enough
    assert everything(out)["report.html"] == "first"
    assert [p.name for p in out.parent.iterdir()] == ["demo"]


def test_an_earlier_demo_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "demo"
    for mark in ("first", "second"):
        with replaced_folder(out) as folder:
            write_demo(folder, mark)
            if mark == "first":
                (folder / "demo.json").write_text(json.dumps({"files": ["masks/m.safetensors", "masks/old"]}))
                (folder / "masks" / "old").write_text("")
    assert sorted(everything(out)) == ["demo.json", "masks/m.safetensors", "report.html"]
    assert everything(out)["masks/m.safetensors"] == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "demo").mkdir()
    with replaced_folder(tmp_path / "demo") as folder:
        write_demo(folder, "x")
    assert len(everything(tmp_path / "demo")) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_an_earlier_demo_as_it_was(tmp_path, error):
    out = tmp_path / "demo"
    with replaced_folder(out) as folder:
        write_demo(folder, "first")
    before = everything(tmp_path)

    def fail():
        with replaced_folder(out) as folder:
            (folder / "report.html").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert everything(tmp_path) == before


def test_a_failure_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ValueError), replaced_folder(tmp_path / "a" / "b" / "demo"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.txt", "masks/notes.txt"])
def test_a_folder_with_files_of_others_is_refused(tmp_path, name):
    out = tmp_path / "demo"
    with replaced_folder(out) as folder:
        write_demo(folder, "first")
    (out / name).write_text("mine")
    with (
        pytest.raises(MultiflowError, match=rf"holds '{name}', which no demo wrote; .*--out DIR"),
        replaced_folder(out),
    ):
        raise AssertionError("not reached")
    assert (out / name).read_text() == "mine"


def test_a_folder_that_is_no_demo_is_refused(tmp_path):
    (tmp_path / "demo.json").write_text("[]")
    with pytest.raises(MultiflowError, match=r"'demo\.json', which no demo wrote"), replaced_folder(tmp_path):
        raise AssertionError("not reached")


def test_files_that_come_in_the_meantime_are_safe(tmp_path):
    out = tmp_path / "demo"

    def run():
        with replaced_folder(out) as folder:
            write_demo(folder, "first")
            out.mkdir()
            (out / "notes.txt").write_text("mine")

    with pytest.raises(MultiflowError, match=r"notes\.txt"):
        run()
    assert everything(tmp_path) == {"demo/notes.txt": "mine"}


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(MultiflowError, match="is a file"), replaced_folder(tmp_path / "demo"):
        raise AssertionError("not reached")
    with pytest.raises(MultiflowError, match="cannot write output folder"), replaced_folder(tmp_path / "demo" / "x"):
        raise AssertionError("not reached")


def test_a_link_keeps_pointing_where_it_does(tmp_path):
    (tmp_path / "there").mkdir()
    os.symlink(tmp_path / "there", tmp_path / "demo")
    with replaced_folder(tmp_path / "demo") as folder:
        write_demo(folder, "x")
    assert (tmp_path / "demo").is_symlink()
    assert len(everything(tmp_path / "there")) == 3
