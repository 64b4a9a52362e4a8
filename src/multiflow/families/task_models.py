"""Which models can be made into which task models, and who builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from multiflow.base.errors import MultiflowError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASKS = ("retrieval", "captioning", "vqa", "classification")

Places: TypeAlias = Mapping[str, tuple[str, ...]]
"""Prunable layer of the pretrained model -> paths of the modules in the task model whose weight starts from it."""

Builder: TypeAlias = "Callable[..., tuple[PreTrainedModel, Places]]"
"""``builder(model, **options)`` -> the task model and the places; the options are its keyword arguments."""

BUILDERS: Mapping[tuple[str, str], str] = {
    ("xvlm", "retrieval"): "multiflow.families.xvlm.tasks:retrieval",
    ("xvlm", "captioning"): "multiflow.families.xvlm.tasks:captioning",
    ("xvlm", "vqa"): "multiflow.families.xvlm.tasks:vqa",
    ("xvlm-retrieval", "retrieval"): "multiflow.families.xvlm.tasks:retrieval",
    ("xvlm-captioning", "captioning"): "multiflow.families.xvlm.tasks:captioning",
    ("xvlm-vqa", "vqa"): "multiflow.families.xvlm.tasks:vqa",
    ("blip-pretraining", "retrieval"): "multiflow.families.blip.tasks:retrieval",
    ("blip-pretraining", "captioning"): "multiflow.families.blip.tasks:captioning",
    ("blip-pretraining", "vqa"): "multiflow.families.blip.tasks:vqa",
    ("blip-retrieval", "retrieval"): "multiflow.families.blip.tasks:retrieval",
    ("blip-captioning", "captioning"): "multiflow.families.blip.tasks:captioning",
    ("blip-vqa", "vqa"): "multiflow.families.blip.tasks:vqa",
    ("vit", "classification"): "multiflow.families.vit.classification:classification",
    ("dinov2", "classification"): "multiflow.families.vit.classification:classification",
}
"""``config.model_type`` and task -> where the builder is. A task model can go on with its own task."""


def find_builder(model: nn.Module, task: str) -> Builder:
    """Import the builder of a task model.

    Raises:
        MultiflowError: there is no such task, or the model cannot do it.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None) or type(model).__name__
    if (model_type, task) not in BUILDERS:
        able = " or ".join(of for of, what in BUILDERS if what == task)
        can = ", ".join(what for of, what in BUILDERS if of == model_type) or "none of the tasks"
        raise MultiflowError(
            f"a model of type '{model_type}' cannot do task '{task}', which takes one of type {able}; it can do {can}"
        )
    module, _, name = BUILDERS[model_type, task].partition(":")
    return getattr(import_module(module), name)
