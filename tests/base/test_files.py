from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.base.files import claim_folder, write_atomically


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "file", "old")

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_taken(tmp_path):
    assert claim_folder(tmp_path / "new", "result.json").is_dir()
    (tmp_path / "new/x").touch()
    with pytest.raises(MultiflowError, match="already holds other files"):
        claim_folder(tmp_path / "new", "result.json")
    (tmp_path / "new/result.json").touch()
    with pytest.raises(MultiflowError, match="already holds a finished run"):
        claim_folder(tmp_path / "new", "result.json")
    with pytest.raises(MultiflowError, match="is a file"):
        claim_folder(tmp_path / "new/x", "result.json")
