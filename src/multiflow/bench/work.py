"""One cell, from its order to its line in the results: what every engine's workers run."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.registry import import_modules
from multiflow.base.runs import is_run_of
from multiflow.bench.engines import Job
from multiflow.bench.grid import Plan
from multiflow.bench.machine import describe_machine
from multiflow.bench.pruning import pruned
from multiflow.bench.records import Cell, Results
from multiflow.bench.sources import load_beside
from multiflow.calibration.memory import peak_memory, reset_peak_memory
from multiflow.families.opening import Preprocessing, find_device, load_model, quiet_transformers
from multiflow.formats.worth import forward_cost
from multiflow.masks import Masks
from multiflow.pruning.plan import versions
from multiflow.tasks.task import TASKS, Figures
from multiflow.training.checkpoint import checkpoints
from multiflow.training.finetune import FREE_TO_CHANGE, MODEL, TRAIN, finetune
from multiflow.training.settings import Finetuning
from multiflow.training.tracking import read_metrics


@dataclass(frozen=True)
class Order:
    """What a worker is told of a cell. Runners that share a folder of results may tell theirs different things."""

    plan: Plan  # the cell and what it takes
    folder: str  # where the runner was started, to which relative paths belong
    device: str = "auto"  # as ``--device`` names it
    git: str | None = None  # revision of the runner's checkout
    failed: str | None = None  # when the cell had failed before the runner was started, as `Cell.finished` says it
    # whether to wait for another runner that has the cell in hand, instead of leaving it to that one
    wait: bool = False

    def is_over(self, cell: Cell | None) -> bool:
        """Return whether a line of the cell ends the order: it has figures, or a failure since the runner began."""
        return cell is not None and (cell.error is None or cell.finished != self.failed)


def work_on(job: Job) -> None:
    """Compute the cell of a job and append its line, unless another runner has it in hand, has done it or failed at it.

    What goes wrong becomes a line with the error, and ``errors/CELL.txt`` with the traceback.
    """
    results, order = Results(Path(job.results)), job.order
    torch.set_num_threads(job.cpus)
    with results.lock(job.cell, wait=order.wait) as got:
        if not got or order.is_over(results.cell(job.cell)):
            return
        run = run_folder(results, job.cell)
        try:
            _enter(order.folder)
            import_modules(order.plan.modules)
            cell = compute(order, results, run)
        except Exception as error:
            text = traceback.format_exc()
            write_atomically(results.folder / "errors" / f"{job.cell}.txt", text)
            cell = replace(order.plan.cell, error=one_line(error))
        results.append(finished(cell, order.git, order.device))
        if cell.error is None:
            shutil.rmtree(run, ignore_errors=True)


def run_folder(results: Results, cell: str) -> Path:
    return results.folder / "runs" / cell


def _enter(folder: str) -> None:
    if os.getcwd() != folder:
        try:
            os.chdir(folder)
        except OSError as error:
            raise MultiflowError(
                f"a worker does not see the folder '{folder}', in which the run was started ({error.strerror}); start "
                "it in a folder that all workers share"
            ) from error


def finished(cell: Cell, git: str | None, device: str = "cpu") -> Cell:
    """Add to a cell when, where and by which code it was computed."""
    where = describe_machine(find_device(device if cell.error is None else "cpu"))
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return replace(cell, versions=versions(), git=git, machine=where, finished=now)


def one_line(error: BaseException) -> str:
    """Say in one line what went wrong; of an error that is not ours, its type too."""
    said = " ".join(str(error).split())
    return said if isinstance(error, MultiflowError) else f"{type(error).__name__}: {said}".rstrip(": ")


def compute(order: Order, results: Results, run: Path) -> Cell:
    """Prune, fine-tune unless it is zero-shot, evaluate the best checkpoint; return the cell with its figures."""
    plan = order.plan
    kind = TASKS[plan.task.kind or plan.cell.task]
    place = str(find_device(order.device))
    with quiet_transformers():
        model, masks = pruned(plan, results, place, order.git)
        reset_peak_memory()
        beside = load_beside(plan.model, model)
        seconds, metrics = {}, [{"step": 0}]
        if plan.task.zero_shot:
            model = sparse_copy(model, masks).to(place)
        else:
            training = plan.task.training(device=place, seed=plan.cell.seed)
            seconds["finetune"] = fine_tune(kind.name, model, masks, training, run, beside)
            metrics = read_metrics(run / TRAIN)
        options = evaluation_options(plan, model)
        began = time.monotonic()
        tuned = model if plan.task.zero_shot else load_model(str(run / MODEL)).to(place)
        figures = evaluate(plan, tuned, beside, options)
        seconds["evaluate"] = time.monotonic() - began
        cost = forward_cost(tuned)
    main = kind.main_of(figures)
    return replace(
        plan.cell,
        score=figures[main],
        metric=main,
        figures=dict(figures),
        each=list(figures.each),
        curve=[(line["step"], line[f"val/{main}"]) for line in metrics if f"val/{main}" in line],
        seconds=seconds,
        cost=cost,
        peak_memory=peak_memory(),
        steps=metrics[-1]["step"],
    )


def sparse_copy(model: nn.Module, masks: Masks | None) -> nn.Module:
    """Return a copy of a model with the masks applied; the model itself, which cells share, where there are none."""
    if masks is None:
        return model
    model = deepcopy(model)
    masks.apply_(model)
    return model


def fine_tune(
    task: str, model: nn.Module, masks: Masks | None, settings: Finetuning, run: Path, beside: Preprocessing
) -> float:
    """Fine-tune the model of a cell, or go on with it after a kill; return the seconds that all of it took.

    Its folder is gone if that fails. One whose fine-tuning has ended stays until the cell has figures.
    """
    began, before = time.monotonic(), 0.0
    if is_run_of(run, settings, free=FREE_TO_CHANGE) and checkpoints(run / TRAIN):  # data may lie elsewhere by now
        before = seconds_before(run / TRAIN)
    else:
        shutil.rmtree(run, ignore_errors=True)
    try:
        finetune(task, model, masks, settings, run, beside, resume=True)
    except Exception:
        shutil.rmtree(run, ignore_errors=True)
        raise
    return before + time.monotonic() - began


def seconds_before(train: Path) -> float:
    """Return how long a run took up to its last checkpoint, where it goes on."""
    last = int(checkpoints(train)[-1].name.removeprefix("step-"))
    return max((line.get("seconds", 0.0) for line in read_metrics(train) if line["step"] <= last), default=0.0)


def evaluation_options(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """Return the options of the evaluation: the task's over those of its preset for the pretrained model."""
    task = plan.task
    preset = TASKS[task.kind or plan.cell.task].preset(task.training().preset, model)
    return {**preset.evaluate, **task.evaluate}


def evaluate(plan: Plan, model: nn.Module, beside: Preprocessing, options: Mapping[str, Any]) -> Figures:
    task, kind = plan.task, TASKS[plan.task.kind or plan.cell.task]
    data = kind.open(
        task.data, task.test_split, images=task.images, limit=task.test_limit, skip_missing=task.skip_missing
    )
    return kind.evaluate(model, beside.tokenizer, data, **beside.pixels, **options)
