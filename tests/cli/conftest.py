"""A small Shapes world, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from multiflow.cli import main
from multiflow.worlds.shapes import write


class Ran(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a command that found its input bad."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("multiflow: error: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("multiflow: error: ").rstrip("\n")


Run = Callable[..., Ran]


def files(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Shapes world on disk."""
    return write(tmp_path_factory.mktemp("data") / "shapes", train=24, val=4, test=4, size=32)


@pytest.fixture(scope="session")
def pairs(world: Path) -> Path:
    """24 image-caption pairs in tar shards."""
    return world / "pretrain" / "cc3m"
