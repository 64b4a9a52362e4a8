from __future__ import annotations

import json
from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.base.run_folder import CHECKPOINT_FILE, RUN_FILE, identity, run_folder
from multiflow.pruning.result import RESULT_FILE

SETTINGS = {"model": "m", "sparsity": [0.5]}


def start(
    path: Path, settings: dict[str, object] = SETTINGS, *, resume: bool = False, checkpoint: bool = False
) -> None:
    """Begin a run and let it be interrupted."""
    try:
        with run_folder(path, settings, resume=resume):
            if checkpoint:
                (path / CHECKPOINT_FILE).write_text("sums")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return


def test_a_run_claims_its_folder_and_tidies_up(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with run_folder(out, SETTINGS, resume=False) as folder:
        assert folder == out
        assert json.loads((out / RUN_FILE).read_text()) == SETTINGS
        (out / RESULT_FILE).write_text("{}")
    assert [path.name for path in out.iterdir()] == [RESULT_FILE]


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    start(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_a_folder_that_was_there_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    start(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_failed_run_keeps_what_else_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "other").touch()
    start(tmp_path / "runs" / "new")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_run_with_a_checkpoint_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, checkpoint=True)
    assert (out / CHECKPOINT_FILE).read_text() == "sums"
    with pytest.raises(MultiflowError, match="holds an unfinished run; go on with it with --resume"):
        start(out)
    start(out, resume=True)  # once more it does not end
    assert (out / CHECKPOINT_FILE).exists()
    with run_folder(out, SETTINGS, resume=True):
        (out / CHECKPOINT_FILE).unlink()
        (out / RESULT_FILE).write_text("{}")
    assert [path.name for path in out.iterdir()] == [RESULT_FILE]


def test_checkpoints_go_when_the_result_is_there_and_what_was_half_written_when_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, checkpoint=True)
    (out / f".{CHECKPOINT_FILE}.123.tmp").write_text("su")
    with run_folder(out, SETTINGS, resume=True):
        assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT_FILE, RUN_FILE]
        (out / "calibration-0.5.safetensors").touch()
        (out / RESULT_FILE).write_text("{}")
    assert [path.name for path in out.iterdir()] == [RESULT_FILE]


def test_a_resumed_run_that_fails_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out, checkpoint=True)
    (out / CHECKPOINT_FILE).unlink()  # the first run was killed before its first checkpoint
    start(out, resume=True)
    assert (out / RUN_FILE).exists()


def test_resume_with_other_settings_says_which(tmp_path: Path) -> None:
    start(tmp_path / "run", checkpoint=True)
    with pytest.raises(MultiflowError, match=r"sparsity \(\[0.5\] then, \[0.75\] now\), seed \(default then, 3 now\)"):
        start(tmp_path / "run", {"model": "m", "sparsity": (0.75,), "seed": 3}, resume=True)


def test_resume_without_a_run_begins_one(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", SETTINGS, resume=True) as out:
        assert (out / RUN_FILE).exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_not_touched(tmp_path: Path, resume: bool) -> None:
    (tmp_path / RESULT_FILE).write_text("{}")
    with pytest.raises(MultiflowError, match="already holds a finished run"):
        start(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(MultiflowError, match="already holds other files"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MultiflowError, match="output folder"):
        start(tmp_path / name)


def test_damaged_settings_are_an_error(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(MultiflowError, match=r"run\.json' cannot be read"):
        start(tmp_path, resume=True)


def test_identity_is_that_of_the_settings_whatever_their_order() -> None:
    assert identity({"a": 1, "b": (2,)}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})
    assert len(identity({})) == 8
