"""``multiflow evaluate``: what a model is worth on a task, by the official metrics."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from torch import nn
from tyro.conf import Positional, arg

from multiflow import __version__
from multiflow.base.artifacts import describe_file, read_facts, write_facts
from multiflow.base.errors import MultiflowError, counted
from multiflow.base.progress import console_progress, paced
from multiflow.base.registry import import_modules
from multiflow.base.runs import fresh_folder
from multiflow.cli.console import EVALUATION_FILE, say, show, table
from multiflow.cli.masks import fitted
from multiflow.cli.settings import Device, Dtype, ImageColumn, Images, MaskSparsity, ModelOptions, TextColumn, own_first
from multiflow.families.family import find_family, model_types, reads_by_processor, type_of
from multiflow.families.opening import (
    check_model,
    find_device,
    find_dtype,
    find_model,
    is_read_by_processor,
    load_preprocessing,
    quiet_transformers,
)
from multiflow.masks import Masks
from multiflow.pruning.result import changed_weights
from multiflow.tasks.captioning.metrics import CAPTION_METRICS, missing_caption_metrics
from multiflow.tasks.task import TASKS, Figures, Task, loyalty
from multiflow.tasks.task_model import task_model


@own_first
@dataclass(frozen=True)
class EvaluateSettings(ModelOptions):
    """What to evaluate on what.

    Args:
        task: retrieval, captioning, vqa, classification, transcription or one from --modules
        model: a folder that 'multiflow finetune' wrote; for retrieval also a pretrained model
        data: data of the task; docs/data.md lists the layouts
        split: train, val or test; 'all' takes data without splits whole
        limit: items at most
        batch_size: items computed at once
        k_test: retrieval: candidates a query that are ranked by the matching head
        top: vqa: answers of the list that are scored whole
        beams: captioning: beams of the search
        metrics: captioning: which metrics, such as CIDEr BLEU-4
        templates: zero-shot classification: sentences with {} for the class, or a file with one on every line
        class_names: zero-shot classification: a JSON file of what the classes are called in the sentences
        max_new_tokens: of a caption or answer of a model that writes
        mask: a file that 'multiflow prune' wrote for this model: what is evaluated is the model with these zeros
        dense: the dense model, or the folder of --save of its evaluation: also says how often both say the same
        skip_missing: leave out what is missing or has no text, instead of stopping
        tokenizer: folder or Hugging Face id
        processor: of a model of transformers, the folder or Hugging Face id of its processor
        prompt: what a model that writes is asked of an image; for vqa with {} for the question
        save: folder for evaluation.json and for what the model said
        modules: Python files, folders or names of modules with tasks and families of your own
    """

    task: Positional[str]
    model: Positional[str]
    data: Annotated[str, arg(metavar="DIR")]
    split: Annotated[str, arg(metavar="SPLIT")] = "test"
    images: Images = None
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    batch_size: Annotated[int, arg(metavar="B")] = 32
    k_test: Annotated[int, arg(metavar="K")] = 256
    top: Annotated[int, arg(metavar="K")] = 128
    beams: Annotated[int, arg(metavar="N")] = 3
    metrics: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    templates: Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="(default: nine usual ones)")] = ()
    class_names: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: those of the data)")] = None
    max_new_tokens: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 30; vqa: 16)")] = None
    mask: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    sparsity: MaskSparsity = None
    dense: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    image_column: ImageColumn = None
    text_column: TextColumn = None
    skip_missing: Annotated[bool, arg(help_behavior_hint="")] = False
    tokenizer: Annotated[str | None, arg(metavar="DIR_OR_ID", help_behavior_hint="(default: the model's)")] = None
    processor: Annotated[str | None, arg(metavar="DIR_OR_ID", help_behavior_hint="(default: the model's)")] = None
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: a usual one)")] = None
    save: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")] = None
    modules: Annotated[tuple[str, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    device: Device = "auto"
    dtype: Dtype = "auto"


OPTIONS = ("k_test", "top", "beams", "metrics", "templates", "class_names", "max_new_tokens")  # each of some tasks


def evaluate(settings: EvaluateSettings) -> None:
    import_modules(settings.modules)
    kind = TASKS[settings.task]
    check(settings)
    place = find_model(settings.model)
    check_model(place)
    task = kind.called(is_read_by_processor(place, settings.family), settings.model)
    mask = None if settings.mask is None else Masks.load(settings.mask, settings.sparsity)
    by_the_dense = None if settings.dense is None else read_said(settings.dense)
    columns = {"image_column": settings.image_column, "text_column": settings.text_column}
    data = task.open(
        settings.data,
        settings.split,
        images=settings.images,
        limit=settings.limit,
        skip_missing=settings.skip_missing,
        **{name: column for name, column in columns.items() if column is not None},
    )
    if data.skipped:
        say(f"left out: {counted(len(data.skipped), 'item')}, such as {data.skipped[0].key} ({data.skipped[0].reason})")
    model = settings.open(place, settings.device, settings.dtype)
    if reads_by_processor(model):
        task.builder(model)
    if settings.mask is not None and mask is not None:
        fitted(mask, settings.mask, model).apply_(model, changed_weights(Path(settings.mask), mask))
    save = None if settings.save is None else fresh_folder(settings.save, ended=EVALUATION_FILE)
    if task.name == "captioning" and not settings.metrics:
        say_what_is_left_out()
    if data.unlisted:
        say(f"warning: {data.unlisted}")
    began = time.monotonic()
    figures = measured(settings, task, model, place, data, save)
    if settings.dense is not None:
        if by_the_dense is None:
            del model
            place = find_model(settings.dense)
            dense = settings.open(place, settings.device, settings.dtype)
            by_the_dense = measured(settings, task, dense, place, data, None).said
        figures = Figures({**figures, "loyalty": loyalty(figures.said, by_the_dense)}, figures.each, figures.said)
    report(settings, figures, data, time.monotonic() - began, save)


def measured(
    settings: EvaluateSettings, task: Task, model: nn.Module, place: str, data: Any, save: Path | None
) -> Figures:
    """Evaluate one model on data that are open already."""
    how: dict[str, Any] = {
        "processor": settings.processor,
        "prompt": settings.prompt,
        "trust_remote_code": settings.trust_remote_code,
    }
    preprocessing = load_preprocessing(settings.tokenizer, place, model, **how)
    model = ready(model, task, place)
    known = signature(task.evaluate).parameters
    options = {name: getattr(settings, name) or None for name in OPTIONS if name in known}
    with quiet_transformers(), console_progress(Console(stderr=True)) as shown:
        return task.evaluate(
            model,
            preprocessing.tokenizer,
            data,
            batch_size=settings.batch_size,
            progress=paced(task.name, shown),
            save=save,
            **preprocessing.pixels,
            **options,
        )


def read_said(source: str) -> tuple[str, ...] | None:
    """Return what a model said in an evaluation whose folder was kept; None where the source is a model."""
    path = Path(source) / EVALUATION_FILE
    if not path.is_file():
        return None
    said = read_facts(path, "evaluation", "evaluate the model again").get("said")
    if not isinstance(said, list) or not all(isinstance(text, str) for text in said):
        raise MultiflowError(
            f"'{path}' does not hold what the model said; evaluate it again with {{save=DIR}}", field="save"
        )
    return tuple(said)


def check(settings: EvaluateSettings) -> None:
    """Check all that can be checked before anything is loaded."""
    find_device(settings.device)
    find_dtype(settings.dtype)
    for name in ("limit", "batch_size", "k_test", "top", "beams", "max_new_tokens"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise MultiflowError(f"--{name.replace('_', '-')} {value} was given; expected at least 1")


def ready(model: nn.Module, task: Task, source: str) -> nn.Module:
    found = find_family(model)
    if found is not None and task.name in found[1].untrained:
        return task_model(model, task.name)
    if type_of(model) in task.models or (found is not None and task.name in found[1].evaluates):
        return model
    try:
        task.builder(model)
        fix = f"; fine-tune it first with 'multiflow finetune {task.name}'"
    except MultiflowError:
        fix = ""
    able = [name for name, _, known in model_types() if task.name in (*known.evaluates, *known.untrained)]
    raise MultiflowError(
        f"'{source}' is of type '{type_of(model)}', and task '{task.name}' is evaluated on one of type "
        f"{' or '.join([*able, *task.models])}{fix}"
    )


def say_what_is_left_out() -> None:
    """Say which caption metrics cannot be had here, and why; where all lack Java, a warning says so later."""
    missing = missing_caption_metrics()
    if len(missing) < len(CAPTION_METRICS):
        for name, why in missing.items():
            say(f"{name} is left out: {why}")


def report(settings: EvaluateSettings, figures: Figures, data: Any, seconds: float, save: Path | None) -> None:
    """Print the figures, and write them beside what the model said."""
    rows = [(name, f"{value:.2f}") for name, value in figures.items()]
    title = (
        f"{settings.model} on {settings.task}: {counted(len(data), 'item')} of {data.source}, split {settings.split}"
    )
    show(table(title, [settings.task, "%"], rows) if rows else title)
    if save is None:
        return
    said = {
        "task": settings.task,
        "figures": dict(figures),
        "said": list(figures.said),
        "files": {path.name: describe_file(path) for path in sorted(save.iterdir()) if path.is_file()},
        "items": len(data),
        "skipped": len(data.skipped),
        "source": data.source,
        "settings": asdict(settings),
        "seconds": seconds,
        "versions": {"multiflow": __version__, "torch": torch.__version__},
    }
    write_facts(save / EVALUATION_FILE, said)
    show(f"written to {save}")
