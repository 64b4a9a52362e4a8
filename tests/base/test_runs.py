from __future__ import annotations

import json
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from multiflow.base.artifacts import read_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.runs import SETTINGS, fresh_folder, identity, locked, run_folder, whole_folder
from tests import processes

FAILED = MultiflowError("it failed")
GIVEN: dict[str, Any] = {"model": "m", "sparsity": [0.5]}
ENDED = {"record": "run.json", "ended": "result.json", "keep": ["sums*"], "passing": ["sums*", "run.json"]}


@dataclass(frozen=True)
class Plan:
    steps: int = 3
    lr: float = 0.1
    mlp: int | None = None


def names(path: Path) -> list[str]:
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))


def begin(path: Path, *made: str, settings: Any = GIVEN, resume: bool = False, **more: Any) -> None:
    """Begin a run that makes some files and is interrupted."""
    with (
        pytest.raises(KeyboardInterrupt),
        run_folder(path, settings, resume=resume, **{**ENDED, **more}),
    ):
        for name in made:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(name)
        raise KeyboardInterrupt


def end(path: Path, settings: Any = GIVEN, **more: Any) -> None:
    with run_folder(path, settings, **{"resume": False, **ENDED, **more}) as folder:
        assert folder == path
        (path / "result.json").write_text("{}")


def test_a_run_writes_its_settings_and_tidies_up(tmp_path):
    with run_folder(tmp_path / "a" / "b", GIVEN, resume=False, **ENDED) as out:
        assert json.loads((out / "run.json").read_text()).items() >= GIVEN.items()
        (out / "sums-1").touch()
        (out / "result.json").touch()
    assert names(tmp_path) == ["a", "a/b", "a/b/result.json"]


def test_settings_may_be_a_dataclass_and_stay(tmp_path):
    with run_folder(tmp_path, Plan(), resume=True):
        pass
    assert names(tmp_path) == [SETTINGS]
    assert read_facts(tmp_path / SETTINGS, "settings", "") == {"steps": 3, "lr": 0.1, "mlp": None}
    with run_folder(tmp_path, Plan(steps=4), resume=True, free=["steps"]):
        pass
    assert json.loads((tmp_path / SETTINGS).read_text())["steps"] == 3


@pytest.mark.parametrize("error", [FAILED, KeyboardInterrupt()])
def test_a_new_run_that_fails_early_leaves_what_was_there_before(tmp_path, error):
    (tmp_path / "mine" / ".git").mkdir(parents=True)
    for place in ("mine", "a/b"):
        with pytest.raises(type(error)), run_folder(tmp_path / place, GIVEN, resume=True, **ENDED):
            (tmp_path / place / "train").mkdir()
            raise error
    assert names(tmp_path) == ["mine", "mine/.git"]


def test_a_run_goes_on_with_resume_alone(tmp_path):
    out = tmp_path / "run"
    begin(out, "sums-0", ".sums-0.123.tmp")
    with pytest.raises(MultiflowError, match="already holds a run; .*resume=True") as error:
        end(out)
    assert "with --resume," in error.value.worded("--{}".format)
    with run_folder(out, GIVEN, resume=True, **ENDED):
        assert names(out) == [".lock", "run.json", "sums-0"]
        (out / "result.json").touch()
    assert names(out) == ["result.json"]


def test_what_a_kill_left_half_written_goes_be_it_a_file_or_a_folder(tmp_path):
    out = tmp_path / "out"
    begin(out, "sums-1", ".sums-2.tmp")
    (out / ".tmpbtGHJr").touch()  # as safetensors calls what it is writing
    (out / ".model.tmp").mkdir()
    (out / ".model.tmp" / "model.safetensors").touch()
    (tmp_path / "elsewhere").mkdir()
    (out / ".link.tmp").symlink_to(tmp_path / "elsewhere")
    begin(out, resume=True)
    assert names(out) == ["run.json", "sums-1"]
    assert (tmp_path / "elsewhere").is_dir()


def test_a_run_that_was_killed_while_it_cleared_up_is_cleared_up(tmp_path):
    out = tmp_path / "out"
    begin(out, "sums-0", resume=False)
    (out / "result.json").touch()
    for _ in range(2):
        with (
            pytest.raises(MultiflowError, match="already holds a finished run"),
            run_folder(out, GIVEN, resume=True, **ENDED),
        ):
            pass
        assert names(out) == ["result.json"]


def test_a_resumed_run_that_fails_loses_nothing(tmp_path):
    begin(tmp_path, "sums")
    (tmp_path / "sums").unlink()  # killed before its first checkpoint
    begin(tmp_path, resume=True)
    assert names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("made", ["train/step-1", "model"])
def test_checkpoints_in_folders_below_are_kept_too(tmp_path, made):
    begin(tmp_path, made, keep=("*/step-*", "model"))
    assert {made, "run.json"} <= set(names(tmp_path))


def test_other_settings_are_named(tmp_path):
    begin(tmp_path, "sums")
    other = {"model": "m", "sparsity": (0.75,), "seed": 3}
    with pytest.raises(MultiflowError, match=r"sparsity \(\[0.5\] .*\[0.75\] .*seed \(default .*3"):
        end(tmp_path, other, resume=True)
    end(tmp_path, other, resume=True, free=["sparsity", "seed"])


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_run_to_go_on_with_is_not_touched(tmp_path, resume):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(MultiflowError, match="already holds other files"):
        end(tmp_path, resume=resume)
    end(tmp_path, resume=resume, allow=["thesis.tex"])
    with pytest.raises(MultiflowError, match="already holds a finished run"):
        end(tmp_path, resume=resume)
    assert names(tmp_path) == ["result.json", "thesis.tex"]


@pytest.mark.parametrize(("content", "said"), [('{"a"', "is damaged"), ("[]", "is damaged .*a list")])
def test_damaged_settings_are_one_sentence(tmp_path, content, said):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MultiflowError, match=f"run.json' {said}"):
        end(tmp_path, resume=True)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    for take in (end, lambda path: fresh_folder(path, "result.json"), lambda path: whole_folder(path).__enter__()):
        with pytest.raises(MultiflowError, match="output folder"):
            take(tmp_path / name)


def hold(out: Path, told: Any) -> None:
    with run_folder(out, {"a": 1}, resume=False, keep=["run.json"], record="run.json"):
        told.send("in")
        time.sleep(60)


def test_a_folder_at_work_is_locked_and_one_that_was_killed_is_not(tmp_path):
    out = tmp_path / "run"
    ours, its = Pipe()
    with processes.fork(hold, out, its):
        assert ours.recv() == "in"
        for resume in (False, True):
            with pytest.raises(MultiflowError, match="another process is at work in output folder"):
                end(out, {"a": 1}, resume=resume)
        assert (out / "run.json").exists()
    end(out, {"a": 1}, resume=True)
    assert names(out) == ["result.json"]


def test_a_lock_is_held_once(tmp_path):
    with locked(tmp_path / "locks" / "a") as first, locked(tmp_path / "locks" / "b", wait=False) as other:
        assert first
        assert other


def test_a_whole_folder_takes_its_place_at_the_end(tmp_path):
    out = tmp_path / "a" / "out"
    with whole_folder(out) as folder:
        (folder / "file").touch()
        assert not out.exists()
    assert names(tmp_path) == ["a", "a/out", "a/out/file"]
    with pytest.raises(MultiflowError, match="already holds other files"), whole_folder(out):
        raise AssertionError
    with whole_folder(out, refuse=lambda place: None) as folder:
        (folder / "other").touch()
    assert names(tmp_path) == ["a", "a/out", "a/out/other"]


@pytest.mark.parametrize("error", [FAILED, KeyboardInterrupt()])
def test_a_folder_that_never_got_whole_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), whole_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", ["a/out", "a/b/out"])
def test_an_empty_folder_that_was_there_stays(tmp_path, out):
    """It is the nearest place that was there before, below which nothing is to be taken away."""
    (tmp_path / "a" / "out").mkdir(parents=True)
    with pytest.raises(MultiflowError, match="No space"), whole_folder(tmp_path / out):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["a", "a/out"]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(MultiflowError, match=r"out' \(No space left on device\)"), whole_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")


def test_identity_is_that_of_the_settings_whatever_their_order():
    assert identity({"a": 1, "b": (2,)}) == identity({"b": [2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})
    assert (len(identity({})), len(identity({}, digits=16))) == (8, 16)
