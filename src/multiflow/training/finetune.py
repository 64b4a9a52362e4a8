"""Fine-tuning: a task model from a pretrained one and its mask, trained with its zeros, the best checkpoint kept.

The run's folder holds ``settings.json``, ``mask.safetensors`` (the mask as it lies on the task model), ``train`` with
checkpoints and metrics, ``model``, an ordinary Hugging Face folder of the best checkpoint so far with its figures in
``validation.json``, and at the end ``figures.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import reduce
from inspect import signature
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.progress import Report, paced
from multiflow.base.ranks import agree, exchange, rank, world
from multiflow.base.runs import run_folder
from multiflow.data.files import NoSuchSplit
from multiflow.families.blip.momentum import MEMORY
from multiflow.families.opening import Beside, find_device
from multiflow.families.presets import Preset, find_preset
from multiflow.families.task_models import find_builder
from multiflow.masks import Masks
from multiflow.masks.keep import buffer_places
from multiflow.tasks.task import TASKS, Task
from multiflow.tasks.task_model import build_task_model, task_masks
from multiflow.training.loop import Validation, train
from multiflow.training.processes import full_state
from multiflow.training.settings import FinetuneSettings, adjust, plan_of

MODEL, TRAIN, MASK, FIGURES, VALIDATION = "model", "train", "mask.safetensors", "figures.json", "validation.json"
TOKENS = (("eos", "sep"), ("pad", "pad"))  # ours and the tokenizer's names of what ends and fills captions
POSITIONS = r"pos(ition)?_embed"
ALONE = Beside()  # nothing belongs to a model but its weights
FREE_TO_CHANGE = ("checkpoint_every", "device", "skip_missing", "wandb")  # these do not alter the weights of a run


@dataclass(frozen=True)
class _Run(FinetuneSettings):
    """Settings of a run, and what they were given for: the kind of the model, and a hash of the mask."""

    task: str = ""
    model: str = ""
    mask: str | None = None


def finetune(
    task: str,
    model: nn.Module,
    masks: Masks | None,
    settings: FinetuneSettings,
    out_dir: str | Path,
    beside: Beside = ALONE,
    *,
    resume: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """Fine-tune a pretrained model for a task, and write the best checkpoint to ``out_dir/model``.

    Args:
        task: ``retrieval``, ``captioning``, ``vqa`` or ``classification``.
        model: the pretrained model; it stays as it is.
        masks: which of its weights are kept; None trains the dense baseline.
        settings: see `FinetuneSettings`.
        out_dir: folder of the run; see the top of this file.
        beside: tokenizer and files of the model.
        resume: go on where an interrupted run of the same settings stopped, or start if there is none.
        progress: called with a `Progress` after every step, and while it evaluates.

    Returns:
        The figures of the best checkpoint on the validation data, in percent, and its ``step``.

    Raises:
        MultiflowError: the folder holds another run, the masks are another model's, the data do not fit the task, or
            training diverged.

    >>> settings = FinetuneSettings("shapes/coco", preset="shapes")         # doctest: +SKIP
    >>> finetune("retrieval", model, masks, settings, "runs/a", beside)     # doctest: +SKIP
    """
    out, kind = Path(out_dir), TASKS[task]
    preset = adjust(find_preset(settings.preset, model, task), settings)
    opening = {"images": settings.images, "skip_missing": settings.skip_missing}
    with _naming_split("train_split"):
        data = kind.open(settings.data, settings.train_split, limit=settings.limit, **opening)
    limits = [limit for limit in (settings.limit, preset.val_limit) if limit is not None]
    with _naming_split("val_split"):
        val_data = kind.open(settings.data, preset.val_split, limit=min(limits, default=None), **opening)
    kind.check(data, val_data, **preset.evaluate)
    skipped = (*data.skipped, *val_data.skipped)
    if skipped and rank() == 0:
        some = f"{skipped[0].key} ({skipped[0].reason})"
        warnings.warn(f"{len(skipped)} items are left out, such as {some}", stacklevel=2)
    built, moved, copies, new = build(kind, model, masks, data, preset, settings, beside)
    plan = plan_of(kind, data, preset, settings)
    nn.Module.to(built, find_device(settings.device))
    pixels = dict(beside.pixels or {})
    inputs = kind.inputs(built, beside.tokenizer, augment=preset.augment, seed=settings.seed, **pixels)
    share = preset.batch_size // (settings.accumulate * world())

    def evaluate() -> dict[str, float]:
        shown = None if progress is None else paced("evaluate", progress)
        return kind.evaluate(built, beside.tokenizer, val_data, progress=shown, **pixels, **preset.evaluate)

    def keep(step: int, figures: Mapping[str, float]) -> None:
        best = _best(out)
        if not exchange("better", best is None or kind.score(figures) > kind.score(best))[0]:
            return
        state = full_state(built)
        if rank() == 0:
            _write_model(built, state, beside, out / MODEL, {**figures, "step": step})
        exchange("best")

    with _claimed(out, task, model, masks, settings, resume):
        if moved is not None and rank() == 0:
            moved.save(out / MASK)
        train(
            built,
            lambda position: kind.batch(data, inputs, share, position),
            kind.loss,
            plan,
            out / TRAIN,
            resume=resume,
            progress=progress,
            validation=Validation(evaluate, keep),
            masks=moved,
            copies=copies,
            new=new,
        )
        figures = _best(out) or {}
        if rank() == 0:
            write_atomically(out / FIGURES, json.dumps(figures, indent=1) + "\n")
    return figures


@contextmanager
def _naming_split(name: str) -> Iterator[None]:
    """Let an error about a split name the setting that it was given with."""
    try:
        yield
    except NoSuchSplit as error:
        option = name.replace("_", "-")
        raise NoSuchSplit(str(error).replace("split= (--split)", f"{name}= (--{option})")) from error


def build(
    kind: Task,
    model: nn.Module,
    masks: Masks | None,
    data: Any,
    preset: Preset,
    settings: FinetuneSettings,
    beside: Beside,
) -> tuple[Any, Masks | None, dict[str, tuple[str, ...]], set[str]]:
    """Build the task model; return it, the masks on it, its buffers that follow masked weights, its new parameters."""
    known = signature(find_builder(model, kind.name)).parameters
    tokens = {f"{ours}_token_id": getattr(beside.tokenizer, f"{theirs}_token_id", None) for ours, theirs in TOKENS}
    wanted = {"image_size": preset.image_size, **tokens, **preset.options, **kind.options(data)}
    options = {name: value for name, value in wanted.items() if name in known}
    if not settings.mask_decoder:
        if "mask_decoder" not in known:
            raise MultiflowError(
                f"mask_decoder=False (--no-mask-decoder) was given, and for task '{kind.name}' the model "
                f"'{type(model).__name__}' gets no decoder that starts from masked layers; leave it out"
            )
        options["mask_decoder"] = False
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        built, places = build_task_model(model, kind.name, **options)
    if kind.name == "classification":
        built.config.id2label = dict(enumerate(data.choices))
        built.config.label2id = {name: number for number, name in enumerate(data.choices)}
    if masks is None:
        return built, None, {}, new_parameters(built, model)
    masks.find_weights(model)
    moved = task_masks(masks, places, built)
    return built, moved, buffer_places(built, moved, places), new_parameters(built, model)


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
    out: Path, task: str, model: Any, masks: Masks | None, settings: FinetuneSettings, resume: bool
) -> Iterator[None]:
    """Claim the folder of the run for these settings, this model and this mask, in all processes alike."""
    mask = None if masks is None else f"{reduce(lambda crc, name: crc32(masks.packed[name].data, crc), masks, 0):08x}"
    given = _Run(**asdict(settings), task=task, model=getattr(model.config, "model_type", ""), mask=mask)
    agree(asdict(given))
    keep = f"{TRAIN}/step-*", MODEL
    with run_folder(out, given, resume=resume, free=FREE_TO_CHANGE, keep=keep) if rank() == 0 else nullcontext():
        exchange("claimed")
        yield


def _best(out: Path) -> dict[str, float] | None:
    """Return the figures of the best checkpoint so far."""
    path = out / MODEL / VALIDATION
    return json.loads(path.read_text()) if path.exists() else None


def _write_model(model: Any, state: dict[str, Any], beside: Beside, folder: Path, figures: Mapping[str, float]) -> None:
    """Write a Hugging Face folder, which takes the place of an older one when it is complete."""
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict={n: x for n, x in state.items() if not re.search(MEMORY, n)})
    if beside.tokenizer is not None:
        beside.tokenizer.save_pretrained(partial)
    for path in beside.files:
        shutil.copyfile(path, partial / path.name)
    (partial / VALIDATION).write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
