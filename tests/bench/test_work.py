from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import multiflow as mf
from multiflow.base.artifacts import next_line, read_lines
from multiflow.base.errors import MultiflowError
from multiflow.bench import work
from multiflow.bench.config import read_grid
from multiflow.bench.engines import Job
from multiflow.bench.grid import expand
from multiflow.bench.records import Results
from multiflow.bench.work import Order, work_on
from multiflow.families.opening import load_preprocessing
from multiflow.masks import hash_weight
from multiflow.tasks.task import TASKS
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
    records = read_lines(metrics.read_text(), "the records", "look")
    records[-2 if "seconds" in records[-2] else -1]["seconds"] = 1000.0
    lines = [""]
    for record in records:
        lines.append(next_line(record, lines[-1]))
    metrics.write_text("".join(lines))
    metrics.with_name("metrics.jsonl.end").unlink(missing_ok=True)  # the seal of the records as they were
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


def count_calls(patch: pytest.MonkeyPatch, function: Any, note: Any) -> None:
    """Tell ``note`` the first argument of every call of a function, wherever the package has imported it."""

    def counted(*given: Any, **options: Any) -> Any:
        note(given[0])
        return function(*given, **options)

    for module in [module for name, module in sys.modules.items() if name.startswith("multiflow")]:
        for name in [name for name, value in vars(module).items() if value is function]:
            patch.setattr(module, name, counted)


@pytest.mark.parametrize("pruner", ["wanda", "lobs"])  # lobs changes the weights that it keeps
def test_cells_load_their_model_once_and_hash_its_weights_once(
    small: dict[str, Any], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, pruner: str
) -> None:
    small["tiers"][0] |= {"pruners": ["dense", pruner], "sparsities": [0.5, 0.75]}
    source = shutil.copytree(tiny, tmp_path / "model")  # one that no test before has loaded
    small["models"]["tiny"]["source"] = str(source)
    path, loads, hashed = write_config(tmp_path, small), list[str](), list[Any]()
    count_calls(monkeypatch, mf.load_model, lambda source: loads.append(str(source)))
    count_calls(monkeypatch, hash_weight, hashed.append)
    cells = compute(path, tmp_path / "r")
    assert [cell.error for cell in cells] == [None] * 3
    trained = [str(tmp_path / "r" / "runs" / cell.id / "model") for cell in cells]
    assert loads == [str(source), *trained]
    (pruning,) = Results(tmp_path / "r").prunings().values()
    assert len(hashed) == len({id(weight) for weight in hashed}) == len(pruning.layers)


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


def test_zero_shot_cells_have_the_figures_of_the_pruned_model_itself(small: dict[str, Any], tmp_path: Path) -> None:
    task = small["tasks"]["retrieval"]
    small["tasks"] = {"zero-shot": {**task, "kind": "retrieval", "zero_shot": True}}
    small["models"]["tiny"]["tasks"] = ["zero-shot"]
    cells = compute(write_config(tmp_path, small), tmp_path / "r")
    assert [(cell.error, cell.task, cell.steps, list(cell.curve)) for cell in cells] == [(None, "zero-shot", 0, [])] * 3
    assert all(set(cell.seconds) == {"evaluate"} and cell.metric and cell.each for cell in cells)
    assert not list((tmp_path / "r" / "runs").glob("*"))
    path = next(path for path in (tmp_path / "r" / "masks").rglob("mask-0.75.safetensors"))
    model, source = mf.load_model(small["models"]["tiny"]["source"]), small["models"]["tiny"]["source"]
    mf.Masks.load(path).apply_(model)
    beside, kind = load_preprocessing(None, source, model), TASKS["retrieval"]
    figures = kind.evaluate(model, beside.tokenizer, kind.open(task["data"], "test"), **beside.pixels, k_test=2)
    assert dict(figures) == next(cell.figures for cell in cells if cell.sparsity == 0.75)


def test_zero_shot_cells_need_no_data_to_train_on(small: dict[str, Any], tmp_path: Path) -> None:
    task = small["tasks"].pop("retrieval")
    listed = json.loads((Path(task["data"]) / "dataset_coco.json").read_text())
    listed["images"] = [one for one in listed["images"] if one["split"] == "test"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "dataset_coco.json").write_text(json.dumps(listed))
    small["tasks"] = {
        "zero-shot": {
            "kind": "retrieval", "zero_shot": True, "finetune": task["finetune"],
            "data": str(tmp_path / "alone"), "images": str(Path(task["data"]).parent / "images"),
        }
    }  # fmt: skip
    small["models"]["tiny"]["tasks"] = ["zero-shot"]
    small["tiers"] = [{"name": "1", "pruners": ["dense"], "sparsities": [0.75]}]
    cells = compute(write_config(tmp_path, small), tmp_path / "r")
    assert [(cell.error, cell.task) for cell in cells] == [(None, "zero-shot")]
