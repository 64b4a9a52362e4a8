"""``multiflow finetune``: a pretrained model and its mask, trained for a task with its zeros."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional, arg

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import rank
from multiflow.base.progress import console_progress
from multiflow.base.registry import import_modules
from multiflow.cli.console import print_figures, show
from multiflow.cli.masks import fitted, write_changed_
from multiflow.cli.pretrain import check_values
from multiflow.cli.settings import MaskSparsity, ModelOptions, Resume, own_first, processes
from multiflow.families.opening import (
    find_device,
    find_model,
    load_preprocessing,
    quiet_transformers,
)
from multiflow.masks import Masks
from multiflow.tasks.task import TASKS
from multiflow.training.finetune import finetune as train
from multiflow.training.settings import Finetuning

MAY_BE_ZERO = ("seed", "image_size", "skip_missing", "mask_decoder", "shard")


@own_first
@dataclass(frozen=True)
class FinetuneSettings(ModelOptions):
    """Which model to train for which task, with which mask, and where.

    Args:
        task: retrieval, captioning, vqa, classification or one from --modules
        model: the pretrained model: a folder, Hugging Face id, checkpoint file or bundled model
        out: folder for checkpoints, metrics and the best model
        mask: a file that 'multiflow prune' wrote, or one of the original release; without one the model stays dense
        mask_decoder: X-VLM for vqa: let the answer decoder take the mask of the fusion layers (the default)
        tokenizer: of a model that comes without its own, a folder or Hugging Face id
        processor: of a model of transformers that comes without its own, a folder or Hugging Face id
        prompt: what a model that writes is asked of an image; for vqa with {} for the question
        modules: Python files, folders or names of modules with tasks and families of your own
    """

    task: Positional[str]
    model: Positional[str]
    training: OmitArgPrefixes[Finetuning]
    out: Annotated[str, arg(metavar="DIR")]
    mask: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: dense)")] = None
    sparsity: MaskSparsity = None
    mask_decoder: Annotated[bool, arg(help_behavior_hint="")] = False
    resume: Resume = False
    tokenizer: Annotated[str | None, arg(metavar="DIR_OR_ID", help_behavior_hint="")] = None
    processor: Annotated[str | None, arg(metavar="DIR_OR_ID", help_behavior_hint="")] = None
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: a usual one)")] = None
    modules: Annotated[tuple[str, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()


def finetune(settings: FinetuneSettings) -> None:
    import_modules(settings.modules)
    TASKS[settings.task]
    check_values(settings.training, MAY_BE_ZERO)
    if settings.mask_decoder and not settings.training.mask_decoder:
        raise MultiflowError("--mask-decoder and --no-mask-decoder were given; give one of them")
    with processes(settings.training.device, settings) as device:
        figures, options = run(settings, str(find_device(device)))
        if rank() == 0:
            print_figures(figures, Path(settings.out))
            show(f"next: {evaluation_of(settings, options)}")


def evaluation_of(settings: FinetuneSettings, options: Mapping[str, Any]) -> str:
    """Return the command that evaluates the trained model on the same data, as its preset evaluates it."""
    given = settings.training
    words = ["multiflow", "evaluate", settings.task, str(Path(settings.out) / "model"), "--data", given.data]
    for name, value in (
        ("--images", given.images),
        ("--image-column", given.image_column),
        ("--text-column", given.text_column),
        ("--prompt", settings.prompt),
    ):
        words += [] if value is None else [name, value]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def run(settings: FinetuneSettings, device: str) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Load what the settings name, and train on a device; return the figures and how its preset evaluates."""
    place = find_model(settings.model)
    mask = None if settings.mask is None else Masks.load(settings.mask, settings.sparsity)
    model = settings.open(place)
    task = TASKS[settings.task].of(model)
    task.builder(model)
    if settings.mask is not None and mask is not None:
        mask = fitted(mask, settings.mask, model)
        write_changed_(model, mask, Path(settings.mask))
    how: dict[str, Any] = {
        "processor": settings.processor,
        "prompt": settings.prompt,
        "trust_remote_code": settings.trust_remote_code,
    }
    preprocessing = load_preprocessing(settings.tokenizer, place, model, **how)
    training = replace(settings.training, device=device)
    with quiet_transformers(), ExitStack() as stack:
        progress = stack.enter_context(console_progress(Console(stderr=True))) if rank() == 0 else None
        figures = train(
            settings.task, model, mask, training, settings.out, preprocessing, resume=settings.resume, progress=progress
        )
    return figures, task.preset(settings.training.preset, model).evaluate
