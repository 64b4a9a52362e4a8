from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.worlds.shapes import write
from tests.cli.conftest import Run

SIZES = ["--train", 4, "--val", 1, "--test", 1, "--size", 32]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_that_of_the_library(run: Run, tmp_path: Path) -> None:
    ran = run("shapes", "world", *SIZES, "--seed", 3, "--style", "chalk", "--downstream-style", "plain")
    assert ran.code == 0
    assert "written to world" in ran.out
    assert "write 12/12 pictures" in ran.err
    sizes = {"train": 4, "val": 1, "test": 1, "size": 32}
    write(tmp_path / "same", **sizes, seed=3, style="chalk", downstream_style="plain")
    assert content(tmp_path / "world") == content(tmp_path / "same")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--style", "plane"], "unknown style 'plane'; known: plain, chalk; did you mean 'plain'?"),
        (["--train", "0"], "train=0 was given"),
        (["--train", "many"], "--train cannot take 'many'"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    assert said in run("shapes", "world", *args).error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/below", "full"])
def test_an_output_folder_that_cannot_be_taken(run: Run, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert f"'{out}'" in run("shapes", out, *SIZES).error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
