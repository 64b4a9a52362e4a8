"""Flipped bits in every artifact: ``python -m tests.robust.flips`` in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robust.flips import OURS, flips


@pytest.mark.parametrize("name", [target.name for target in OURS])
@pytest.mark.filterwarnings("ignore")
def test_every_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    found = list(flips([name], 30, 1, tmp_path))
    assert len(found) == 30
    assert [flip for flip in found if not flip.noticed] == []
