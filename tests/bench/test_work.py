from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench import work
from multiflow.bench.config import read_grid
from multiflow.bench.engines.base import Job
from multiflow.bench.grid import expand
from multiflow.bench.store import Results
from multiflow.bench.work import Order, work_on
from tests.bench.conftest import compute, write_config


def test_a_cell_whose_evaluation_fails_is_not_trained_again(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["tiers"][0]["pruners"] = ["dense"]
    path, folder = write_config(tmp_path, small), tmp_path / "r"
    seen: list[int] = []

    def evaluate(*given: Any) -> Any:
        (last,) = (folder / "runs").glob("*/train/step-00000002/state.json")
        seen.append(last.stat().st_mtime_ns)
        if len(seen) == 1:
            raise RuntimeError("no memory")
        return whole(*given)

    whole = work.evaluate
    monkeypatch.setattr(work, "evaluate", evaluate)
    (failed,) = compute(path, folder)
    assert failed.error == "RuntimeError: no memory"
    metrics = folder / "runs" / failed.id / "train" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[-2 if "seconds" in lines[-2] else -1]["seconds"] = 1000.0
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (cell,) = compute(path, folder)
    assert (cell.error, cell.steps, [step for step, _ in cell.curve]) == (None, 2, [1, 2])
    assert seen[0] == seen[1]
    assert 1000 < cell.seconds["finetune"] < 1100
    assert not (folder / "runs" / cell.id).exists()
    (folder / "runs" / cell.id / "train").mkdir(parents=True)  # as a kill before it was deleted leaves it
    assert compute(path, folder) == []
    assert not (folder / "runs" / cell.id).exists()


def test_training_on_data_that_have_moved_starts_anew(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["tiers"][0]["pruners"] = ["dense"]
    path, folder = write_config(tmp_path, small), tmp_path / "r"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(work, "evaluate", Mock(side_effect=KeyboardInterrupt))
        compute(path, folder)
    (settings,) = (folder / "runs").glob("*/settings.json")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "data": "elsewhere"}))
    (cell,) = compute(path, folder)
    assert cell.error is None
    assert compute(path, tmp_path / "whole")[0].figures == cell.figures


def test_training_that_fails_leaves_nothing(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["tiers"][0]["pruners"] = ["dense"]
    path, folder = write_config(tmp_path, small), tmp_path / "r"

    def finetune(task: str, model: Any, masks: Any, settings: Any, run: Path, *rest: Any, **more: Any) -> None:
        (run / "train").mkdir(parents=True)
        raise MultiflowError("the loss is nan")

    monkeypatch.setattr(work, "finetune", finetune)
    assert [cell.error for cell in compute(path, folder)] == ["the loss is nan"]
    assert not list((folder / "runs").glob("*"))


@pytest.mark.parametrize("gone", ["data", "folder"])
def test_a_worker_without_the_data_says_so(small: dict[str, Any], tmp_path: Path, gone: str) -> None:
    grid, _ = read_grid(write_config(tmp_path, small))
    plan = expand(grid)[0]
    results, nowhere = Results(tmp_path / "r"), str(tmp_path / "nowhere")
    order = Order(plan, os.getcwd(), "cpu")
    if gone == "data":
        order = replace(order, plan=replace(plan, task=replace(plan.task, data=nowhere)))
    else:
        order = replace(order, folder=nowhere)
    work_on(Job(str(results.folder), plan.cell.id, order=order))
    error = results.cells()[plan.cell.id].error
    says = f"no data at '{nowhere}'" if gone == "data" else f"a worker does not see the folder '{nowhere}'"
    assert error is not None
    assert error.startswith(says)
