"""``multiflow show``: what there is, and what is in a model, a mask, a run or a data set."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import nn
from tyro.conf import Positional, arg

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.cli.console import show as put
from multiflow.cli.console import table
from multiflow.cli.settings import Config, Family
from multiflow.cli.show_data import show_data
from multiflow.cli.show_masks import compare_masks, is_mask_file, show_masks
from multiflow.cli.show_model import show_model
from multiflow.cli.show_run import find_run, show_run
from multiflow.families.family import FAMILIES, model_types
from multiflow.families.opening import bundled_models, find_model, open_model
from multiflow.methods import PRUNERS
from multiflow.tasks.task import TASKS

WHAT = "pruners, models, tasks, MODEL, MASK_FILE [MASK_FILE], RUN_DIR or data DIR"


@dataclass(frozen=True)
class ShowSettings:
    """What to show.

    Args:
        what: pruners | models | tasks | MODEL | MASK_FILE | MASK_FILE MASK_FILE (how far two agree) | RUN_DIR |
            data DIR
        model: of mask files of the original release, the model that they are for: it knows the groups of the layers
        images: of a data set, the folder of the images that it names
    """

    what: Positional[tuple[str, ...]]
    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    family: Family = None
    config: Config = None
    images: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: beside the data)")] = None


def show(settings: ShowSettings) -> None:
    """Show what was named."""
    match settings.what:
        case [name] if name in LISTS:
            put(LISTS[name]())
        case ["data", source]:
            show_data(source, settings.images)
        case [first, second]:
            compare_masks(first, second, mask_model(settings))
        case [source] if is_mask_file(source):
            show_masks(source, mask_model(settings))
        case [source] if find_run(source):
            show_run(Path(source))
        case [source]:
            if did_you_mean(source, LISTS) and not Path(source).exists():
                raise unknown("name", source, [*LISTS, *bundled_models(), "a file or folder"])
            place = find_model(source)
            show_model(open_model(place, settings.family, settings.config), source)
        case given:
            raise MultiflowError(f"'multiflow show' got {len(given)} names; expected {WHAT}")


def mask_model(settings: ShowSettings) -> nn.Module | None:
    """Load the model that masks are for, where one is named."""
    if settings.model is None:
        return None
    return open_model(find_model(settings.model), settings.family, settings.config)


def list_pruners() -> object:
    """List every pruner, what it needs and how it shares the zeros out."""
    rows = [
        (
            name,
            pruner.summary,
            ", ".join(pruner.looks_at) or "no data",
            f"{pruner.pattern}, {pruner.allocation}",
            " ".join(f"{key}={value}" for key, value in pruner.hyper.items()) or "-",
        )
        for name, pruner in PRUNERS.items()
    ]
    return table("", ["pruner", "what it does", "needs", "pattern, allocation", "hyper-parameters"], rows)


def list_models() -> object:
    """List the families that need no adapter, and the models inside the package."""
    rows = [(name, "family", "a Hugging Face id or folder with this config.model_type") for name, *_ in model_types()]
    rows += [
        (name, "original release", f"a checkpoint file with --family {name}")
        for name, family in FAMILIES.items()
        if family.release
    ]
    rows += [(name, "bundled", "inside this package: name it like a model") for name in bundled_models()]
    return table("", ["model", "kind", "how to name it"], rows)


def list_tasks() -> object:
    """List the tasks that a model can be trained for and evaluated on."""
    rows = [(name, (inspect.getdoc(inspect.getmodule(TASKS[name].evaluate)) or "").split("\n\n")[0]) for name in TASKS]
    return table("", ["task", "what it is"], rows)


LISTS = {"pruners": list_pruners, "models": list_models, "tasks": list_tasks}
