"""Flipped bits in every artifact: ``python -m tests.robust.flips`` in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robust.flips import FOLDERS, OURS, flips


@pytest.mark.parametrize("name", [target.name for target in OURS])
@pytest.mark.filterwarnings("ignore")
def test_every_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    each = 8 if name in {target.name for target in FOLDERS} else 30
    found = list(flips([name], each, 1, tmp_path))
    assert len(found) == each
    assert [flip for flip in found if not flip.noticed] == []
