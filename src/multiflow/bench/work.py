"""One cell, from its job file to its line in the results: what every engine's workers run."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multiflow.bench.check import import_modules
from multiflow.bench.config import ModelEntry, PrunerEntry, TaskEntry
from multiflow.bench.engines.base import Job
from multiflow.bench.grid import Plan
from multiflow.bench.machine import describe_machine, peak_memory, reset_peak_memory
from multiflow.bench.pruning import pruned
from multiflow.bench.sources import find_device, load_beside, quiet_transformers
from multiflow.bench.store import Results
from multiflow.bench.strict import build
from multiflow.errors import MultiflowError
from multiflow.files import write_atomically
from multiflow.metrics import Figures
from multiflow.models import load_model
from multiflow.report.records import Cell, read_record
from multiflow.result import versions
from multiflow.tasks.base import TASKS
from multiflow.tasks.checkpoint import checkpoints
from multiflow.tasks.finetune import MODEL, finetune
from multiflow.tasks.loading import Beside
from multiflow.tasks.presets import find_preset
from multiflow.tasks.tracking import read_metrics

TRAIN = "train"


@dataclass(frozen=True)
class Order:
    """A job file: the plan of a cell, and what is the same for all cells of a run.

    Args:
        plan: the cell and what it takes.
        folder: where the runner was started, to which relative paths belong.
        device: as ``--device`` names it.
        git: revision of the runner's checkout.
    """

    plan: Plan
    folder: str
    device: str = "auto"
    git: str | None = None


def job_file(results: Results, cell: str) -> Path:
    """Return where the job of a cell is written."""
    return results.folder / "jobs" / f"{cell}.json"


def write_order(results: Results, order: Order) -> None:
    """Write a job file."""
    write_atomically(job_file(results, order.plan.cell.id), json.dumps(asdict(order)) + "\n")


def read_order(path: Path) -> Order:
    """Read a job file.

    Raises:
        MultiflowError: it is not there, or not as this version writes it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        plan = values["plan"]
        return Order(
            Plan(
                read_record(Cell, plan["cell"]),
                build(ModelEntry, plan["model"], "model"),
                build(TaskEntry, plan["task"], "task"),
                None if plan["pruner"] is None else build(PrunerEntry, plan["pruner"], "pruner"),
                tuple(plan["sparsities"]),
                tuple(plan["modules"]),
            ),
            values["folder"],
            values["device"],
            values["git"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MultiflowError(
            f"job file '{path}' cannot be read ({error}); is the folder of results on a disk that all workers see?"
        ) from error


def work_on(job: Job) -> None:
    """Compute the cell of a job and append its line, unless it is done or another runner has it in hand.

    What goes wrong becomes a line with the error, and ``errors/CELL.txt`` with the traceback.
    """
    results = Results(Path(job.results))
    torch.set_num_threads(job.cpus)
    with results.lock(job.cell, wait=job.wait) as got:
        there = results.cell(job.cell) if got else None
        if not got or (there is not None and there.error is None):
            return
        order = read_order(job_file(results, job.cell))
        run = results.folder / "runs" / job.cell
        try:
            _enter(order.folder)
            import_modules(order.plan.modules)
            cell = compute(order.plan, results, run, order.device)
        except Exception as error:
            text = traceback.format_exc()
            write_atomically(results.folder / "errors" / f"{job.cell}.txt", text)
            cell = replace(order.plan.cell, error=one_line(error))
        results.append(finished(cell, order.git, order.device))
        shutil.rmtree(run, ignore_errors=True)


def _enter(folder: str) -> None:
    """Go to the folder in which the runner was started."""
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


def compute(plan: Plan, results: Results, run: Path, device: str) -> Cell:
    """Prune, fine-tune, and evaluate the best checkpoint on the test data; return the cell with its figures."""
    kind = TASKS[plan.task.kind or plan.cell.task]
    place = str(find_device(device))
    if not checkpoints(run / TRAIN):
        shutil.rmtree(run, ignore_errors=True)  # what a kill left before the first checkpoint
    with quiet_transformers():
        model, masks = pruned(plan, results, place)
        reset_peak_memory()
        beside = load_beside(plan.model, model)
        training = plan.task.training(device=place, seed=plan.cell.seed)
        began = time.monotonic()
        finetune(kind.name, model, masks, training, run, beside, resume=True)
        trained = time.monotonic()
        options = evaluation_options(plan, model)
        del model
        figures = evaluate(plan, load_model(str(run / MODEL)).to(place), beside, options)
        seconds = {"finetune": trained - began, "evaluate": time.monotonic() - trained}
    main = kind.main_of(figures)
    metrics = read_metrics(run / TRAIN)
    return replace(
        plan.cell,
        score=figures[main],
        metric=main,
        figures=dict(figures),
        each=list(figures.each),
        curve=[(line["step"], line[f"val/{main}"]) for line in metrics if f"val/{main}" in line],
        seconds=seconds,
        peak_memory=peak_memory(),
        steps=metrics[-1]["step"],
    )


def evaluation_options(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """Return the options of the evaluation: the task's over those of its preset for the pretrained model."""
    task = plan.task
    preset = find_preset(task.training().preset, model, task.kind or plan.cell.task)
    return {**preset.evaluate, **task.evaluate}


def evaluate(plan: Plan, model: nn.Module, beside: Beside, options: Mapping[str, Any]) -> Figures:
    """Return the figures of a model on the test data of a cell."""
    task, kind = plan.task, TASKS[plan.task.kind or plan.cell.task]
    data = kind.open(
        task.data, task.test_split, images=task.images, limit=task.test_limit, skip_missing=task.skip_missing
    )
    return kind.evaluate(model, beside.tokenizer, data, **dict(beside.pixels or {}), **options)
