from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.bench.sources import is_missing, make_data


def test_data_are_made_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make = {"shapes": {"out": "~/s", "train": 4, "val": 2, "test": 2, "size": 32}}
    assert is_missing("~/s/coco", make)
    make_data(make, print)
    assert (tmp_path / "home/s/dataset.json").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]
    assert not is_missing("~/s/coco", make)
    assert not is_missing("elsewhere", make)
