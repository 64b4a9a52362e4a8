from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from multiflow.errors import MultiflowError
from multiflow.tasks.claim import claim_run, flags


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
    with pytest.raises(MultiflowError, match="already holds a run; resume it"):
        claim_run(tmp_path, Plan(), resume=False)
    with pytest.raises(MultiflowError, match=r"was started with lr=0.1, not 0.2; resume it with its own settings"):
        claim_run(tmp_path, Plan(lr=0.2), resume=True)
    with pytest.raises(MultiflowError, match="was started with checkpoint_every=5, not 9"):
        claim_run(tmp_path, Plan(checkpoint_every=9), resume=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultiflowError, match=r"cannot write to .*file/run: Not a directory"):
        claim_run(tmp_path / "file" / "run", Plan(), resume=False)


def test_flags_name_what_differs_from_the_defaults():
    assert flags(Plan()) == ""
    assert flags(Plan(lr=0.5, checkpoint_every=7, mlp=8)) == " --lr 0.5 --checkpoint-every 7 --mlp 8"
