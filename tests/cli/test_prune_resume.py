from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from multiflow.families.batches import Counted
from tests.cli.conftest import Run, files


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Let calibration be interrupted after a batch."""
    whole = Counted.__iter__

    def cut(batches: Counted) -> Iterator[Any]:
        for number, item in enumerate(whole(batches), start=1):
            if number > batch:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Counted, "__iter__", cut)


def test_a_run_that_was_stopped_goes_on_to_the_same_masks(
    run: Run, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["prune", tiny, "--data", pairs, "--batch-size", 4, "--sparsity", 0.5, "--checkpoint-every", 2]
    assert run(*args, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        ran = run(*args, "--out", "cut")
    assert ran.code == 130
    assert ran.err.endswith(
        "multiflow: 'cut' keeps what has been done; go on with the same command and --resume\nmultiflow: interrupted\n"
    )
    assert files(Path("cut")) == ["calibration.safetensors", "run.json"]
    assert "already holds a run; go on with it with --resume" in run(*args, "--out", "cut").error
    assert "other settings: seed (default then, 7 now)" in run(*args, "--seed", 7, "--out", "cut", "--resume").error
    assert "has not ended" in run("show", "cut").error
    ran = run(*args, "--out", "cut", "--resume", "--checkpoint-every", 3)
    assert ran.code == 0
    assert "calibrate 5/6" in ran.err  # the first four were not computed again
    assert files(Path("cut")) == ["mask-0.5.safetensors", "result.json"]
    assert mf.Masks.load("cut/mask-0.5.safetensors") == mf.Masks.load("whole/mask-0.5.safetensors")
    assert json.loads(Path("cut/result.json").read_text())["data"]["samples"] == 24
    assert "already holds a finished run" in run(*args, "--out", "cut", "--resume").error


@pytest.mark.parametrize(("interrupted", "every"), [(1, 2), (4, 0)], ids=["too early", "none asked for"])
def test_a_run_stopped_without_a_checkpoint_leaves_nothing(
    run: Run, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interrupted: int, every: int
) -> None:
    interrupt_at(monkeypatch, interrupted)
    assert run("prune", tiny, "--data", pairs, "--batch-size", 4, "--checkpoint-every", every).code == 130
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
