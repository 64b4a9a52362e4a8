"""Fine-tuning: a task model from a pretrained one and its mask, trained with its zeros, the best checkpoint kept.

The run's folder holds ``settings.json``, ``mask.safetensors`` (the mask as it lies on the task model), ``train`` with
checkpoints and metrics, ``model``, an ordinary Hugging Face folder of the best checkpoint so far with its figures in
``validation.json``, and at the end ``figures.json``.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import reduce
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import nn

from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import counted
from multiflow.base.files import copy_files
from multiflow.base.parallel import agree, exchange, rank, world
from multiflow.base.progress import Report, paced
from multiflow.base.runs import run_folder
from multiflow.base.structure import write_structure
from multiflow.data.images import NoSuchSplit
from multiflow.families.family import memory_of
from multiflow.families.opening import Preprocessing, find_device
from multiflow.masks import Masks
from multiflow.masks.keep import buffer_places
from multiflow.tasks.task_model import build_task_model, task_masks
from multiflow.training.loop import Validation, train
from multiflow.training.processes import full_state
from multiflow.training.settings import FinetunePlan, Finetuning, plan_finetuning

MODEL, TRAIN, MASK, FIGURES, VALIDATION = "model", "train", "mask.safetensors", "figures.json", "validation.json"
TOKENS = (("eos", "sep"), ("pad", "pad"))  # ours and the tokenizer's names of what ends and fills captions
POSITIONS = r"pos(ition)?_embed"
FREE_TO_CHANGE = ("checkpoint_every", "device", "skip_missing", "wandb")  # these do not alter the weights of a run


def finetune(
    task: str,
    model: nn.Module,
    masks: Masks | None,
    settings: Finetuning,
    out_dir: str | Path,
    preprocessing: Preprocessing | None = None,
    *,
    resume: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """Fine-tune a pretrained model for a task, and write the best checkpoint to ``out_dir/model``.

    Args:
        task: ``retrieval``, ``captioning``, ``vqa`` or ``classification``.
        model: the pretrained model; it stays as it is.
        masks: which of its weights are kept; None trains the dense baseline.
        settings: see `Finetuning`.
        out_dir: folder of the run; see the top of this file.
        preprocessing: tokenizer and files of the model.
        resume: go on where an interrupted run of the same settings stopped, or start if there is none.
        progress: called with a `Progress` after every step, and while it evaluates.

    Returns:
        The figures of the best checkpoint on the validation data, in percent, and its ``step``.

    Raises:
        MultiflowError: the folder holds another run, the masks are another model's, the data do not fit the task, or
            training diverged.

    >>> settings = Finetuning("shapes/coco", preset="shapes")         # doctest: +SKIP
    >>> finetune("retrieval", model, masks, settings, "runs/a", preprocessing)     # doctest: +SKIP
    """
    out, preprocessing = Path(out_dir), preprocessing or Preprocessing()
    plan = plan_finetuning(task, model, settings)
    kind, preset = plan.task, plan.preset
    # 1. the data
    data, val_data = _open_data(plan)
    kind.check(data, val_data, **preset.evaluate)
    # 2. the task model with its masks
    built = build(plan, model, masks, data, preprocessing)
    train_settings = plan.train_settings(data)
    nn.Module.to(built.model, find_device(settings.device))
    # 3. training, from time to time an evaluation
    pixels = preprocessing.pixels
    inputs = kind.inputs(built.model, preprocessing.tokenizer, augment=preset.augment, seed=settings.seed, **pixels)
    share = preset.batch_size // (settings.accumulate * world())

    def evaluate() -> dict[str, float]:
        shown = None if progress is None else paced("evaluate", progress)
        return kind.evaluate(
            built.model, preprocessing.tokenizer, val_data, progress=shown, **pixels, **preset.evaluate
        )

    def keep(step: int, figures: Mapping[str, float]) -> None:
        best = _best(out)
        if not exchange("better", best is None or kind.score(figures) > kind.score(best))[0]:
            return
        state = full_state(built.model)
        if rank() == 0:
            _write_model(built.model, state, preprocessing, {**figures, "step": step}, out / MODEL)
        exchange("best")

    with _claimed(out, task, model, masks, settings, resume):
        if built.masks is not None and rank() == 0:
            built.masks.save(out / MASK)
        train(
            built.model,
            lambda position: kind.batch(data, inputs, share, position),
            kind.loss,
            train_settings,
            out / TRAIN,
            resume=resume,
            progress=progress,
            validation=Validation(evaluate, keep),
            masks=built.masks,
            copies=built.copies,
            new=built.new,
        )
        figures = _best(out) or {}
        if rank() == 0:
            write_facts(out / FIGURES, figures)
    return figures


def _open_data(plan: FinetunePlan) -> tuple[Any, Any]:
    """Open the training data and those to choose the best checkpoint by; what is left out is a warning."""
    given, preset = plan.given, plan.preset
    columns = {"image_column": given.image_column, "text_column": given.text_column}
    options = {"images": given.images, "skip_missing": given.skip_missing}
    options |= {name: column for name, column in columns.items() if column is not None}
    limits = [limit for limit in (given.limit, preset.val_limit) if limit is not None]
    with _naming_split("train_split"):
        data = plan.task.open(given.data, given.train_split, limit=given.limit, **options)
    with _naming_split("val_split"):
        val_data = plan.task.open(given.data, preset.val_split, limit=min(limits, default=None), **options)
    skipped = (*data.skipped, *val_data.skipped)
    if skipped and rank() == 0:
        some = f"{skipped[0].key} ({skipped[0].reason})"
        warnings.warn(f"left out: {counted(len(skipped), 'item')}, such as {some}", stacklevel=3)
    return data, val_data


@contextmanager
def _naming_split(name: str) -> Iterator[None]:
    try:
        yield
    except NoSuchSplit as error:
        raise error.called(name) from error


class Built(NamedTuple):
    """A task model that is ready to be trained."""

    model: Any  # the task model
    masks: Masks | None  # those of the pretrained model, on its layers
    copies: Mapping[str, tuple[str, ...]]  # its buffers that follow masked weights, see `keep_sparse`
    new: set[str]  # names of its parameters that start from nothing


def build(plan: FinetunePlan, model: nn.Module, masks: Masks | None, data: Any, preprocessing: Preprocessing) -> Built:
    """Build the task model of a plan for these training data; the seed decides its new weights."""
    task, settings = plan.task, plan.given
    known = signature(task.builder(model)).parameters
    tokenizer = preprocessing.tokenizer
    tokens = {f"{ours}_token_id": getattr(tokenizer, f"{theirs}_token_id", None) for ours, theirs in TOKENS}
    wanted = {"image_size": plan.preset.image_size, **tokens, **plan.preset.options, **task.options(data)}
    options = {name: value for name, value in wanted.items() if name in known}
    if not settings.mask_decoder:
        options["mask_decoder"] = False
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        built, places = build_task_model(model, task.name, **options)
    task.finish(built, data)
    if masks is None:
        return Built(built, None, {}, new_parameters(built, model))
    masks.find_weights(model)
    moved = task_masks(masks, places, built)
    return Built(built, moved, buffer_places(built, moved, places), new_parameters(built, model))


def new_parameters(built: nn.Module, model: nn.Module) -> set[str]:
    """Return the names of the parameters that start from none of the pretrained model's; resized positions do."""
    pretrained: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        pretrained.setdefault(parameter.shape, []).append(parameter)

    def is_new(parameter: nn.Parameter) -> bool:
        return not any(torch.equal(parameter, other) for other in pretrained.get(parameter.shape, ()))

    return {name for name, p in built.named_parameters() if not re.search(POSITIONS, name) and is_new(p)}


@contextmanager
def _claimed(
    out: Path, task: str, model: Any, masks: Masks | None, settings: Finetuning, resume: bool
) -> Iterator[None]:
    """Claim the folder of the run for these settings, this model and this mask, in all processes alike."""
    mask = None if masks is None else f"{reduce(lambda crc, name: crc32(masks.packed[name].data, crc), masks, 0):08x}"
    given = {**asdict(settings), "task": task, "model": getattr(model.config, "model_type", ""), "mask": mask}
    agree(given)
    keep = f"{TRAIN}/step-*", MODEL
    with run_folder(out, given, resume=resume, free=FREE_TO_CHANGE, keep=keep) if rank() == 0 else nullcontext():
        exchange("claimed")
        yield


def _best(out: Path) -> dict[str, float] | None:
    path = out / MODEL / VALIDATION
    fix = "delete it, and the next evaluation counts as the best one"
    return read_facts(path, "figures of a model", fix) if path.exists() else None


def _write_model(
    model: Any, state: dict[str, Any], preprocessing: Preprocessing, figures: Mapping[str, float], folder: Path
) -> None:
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    memory = memory_of(model)
    model.save_pretrained(partial, state_dict={n: x for n, x in state.items() if not re.search(memory, n)})
    write_structure(model, partial)
    if hasattr(preprocessing.tokenizer, "save_pretrained"):
        preprocessing.tokenizer.save_pretrained(partial)
    copy_files(preprocessing.files, partial)
    write_facts(partial / VALIDATION, figures)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
