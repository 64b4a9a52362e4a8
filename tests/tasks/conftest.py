"""A small Shapes world on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.data.shapes import write
from tests.tasks.small import SMALL


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in ``coco``, questions in ``vqa``: 6 train, 5 val and 4 test images."""
    return write(tmp_path_factory.mktemp("data") / "world", train=12, val=5, test=4, size=SMALL.image_size)
