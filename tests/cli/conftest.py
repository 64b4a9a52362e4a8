"""A small Shapes world, and the command line run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.worlds.shapes import write
from tests.conftest import Ran, Run

__all__ = ["Ran", "Run", "files"]


def files(folder: Path) -> list[str]:
    """All files below a folder, by their paths in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Shapes world on disk."""
    return write(tmp_path_factory.mktemp("data") / "shapes", train=24, val=4, test=4, size=32)


@pytest.fixture(scope="session")
def pairs(world: Path) -> Path:
    """24 image-caption pairs in tar shards."""
    return world / "pretrain" / "cc3m"
