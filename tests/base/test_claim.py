from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from multiflow.base.claim import claim_run, claimed_run, flags
from multiflow.base.errors import MultiflowError

FAILED = MultiflowError("it failed")


@dataclass(frozen=True)
class Plan:
    steps: int = 3
    lr: float = 0.1
    checkpoint_every: int = 5
    mlp: int | None = None


def test_the_settings_are_written_once(tmp_path):
    out = tmp_path / "a" / "run"
    claim_run(out, Plan(), resume=False)
    stored = (out / "settings.json").read_text()
    assert json.loads(stored) == {"steps": 3, "lr": 0.1, "checkpoint_every": 5, "mlp": None}
    claim_run(out, Plan(checkpoint_every=9), resume=True, free=["checkpoint_every"])
    assert (out / "settings.json").read_text() == stored


def test_another_run_is_refused(tmp_path):
    claim_run(tmp_path, Plan(), resume=True)  # nothing to resume: a new run
    with pytest.raises(MultiflowError, match=r"already holds a run; resume it \(resume=True, --resume\) or choose"):
        claim_run(tmp_path, Plan(), resume=False)
    with pytest.raises(MultiflowError, match=r"was started with lr=0.1, not 0.2; resume it with its own settings"):
        claim_run(tmp_path, Plan(lr=0.2), resume=True)
    with pytest.raises(MultiflowError, match="was started with checkpoint_every=5, not 9"):
        claim_run(tmp_path, Plan(checkpoint_every=9), resume=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultiflowError, match=r"cannot write to .*file/run: Not a directory"):
        claim_run(tmp_path / "file" / "run", Plan(), resume=False)


@pytest.mark.parametrize(("content", "said"), [('{"steps"', "cannot be read"), ("[]", "holds no settings but list")])
def test_damaged_settings_are_one_sentence(tmp_path, content, said):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(MultiflowError, match=f"settings.json' {said}"):
        claim_run(tmp_path, Plan(), resume=True)
    assert (tmp_path / "settings.json").read_text() == content


def fail_after(out, *names, error=FAILED):
    with pytest.raises(type(error)), claimed_run(out, Plan(), resume=True, worth=("train/step-*", "model")):
        for name in names:
            (out / name).mkdir(parents=True)
        (out / "mask").write_text("")
        raise error


@pytest.mark.parametrize("error", [FAILED, KeyboardInterrupt()])
def test_a_new_run_that_fails_early_leaves_nothing(tmp_path, error):
    fail_after(tmp_path / "a" / "run", "train", error=error)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there" / ".git").mkdir(parents=True)
    fail_after(tmp_path / "there", error=error)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there", tmp_path / "there" / ".git"]


@pytest.mark.parametrize("worth", ["train/step-1", "model"])
def test_a_run_that_fails_later_keeps_what_it_has(tmp_path, worth):
    fail_after(tmp_path / "run", worth)
    assert (tmp_path / "run" / "settings.json").exists()
    assert (tmp_path / "run" / worth).exists()


def test_a_run_that_went_on_is_never_removed(tmp_path):
    claim_run(tmp_path / "run", Plan(), resume=False)
    fail_after(tmp_path / "run")
    assert (tmp_path / "run" / "settings.json").exists()


def test_a_folder_of_other_files_is_refused_and_stays(tmp_path):
    (tmp_path / "train").mkdir()
    with (
        pytest.raises(MultiflowError, match="already holds other files; choose a new folder"),
        claimed_run(tmp_path, Plan(), resume=True, worth=()),
    ):
        raise AssertionError
    assert list(tmp_path.iterdir()) == [tmp_path / "train"]


def test_flags_name_what_differs_from_the_defaults():
    assert flags(Plan()) == ""
    assert flags(Plan(lr=0.5, checkpoint_every=7, mlp=8)) == " --lr 0.5 --checkpoint-every 7 --mlp 8"
