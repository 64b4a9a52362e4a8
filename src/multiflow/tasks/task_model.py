"""Task models: built from a pretrained model and its masks, which follow each weight to its place."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.guards import exclusively
from multiflow.base.types import Layer, Layout
from multiflow.families.family import Places, adapter_for, check_fit
from multiflow.masks import Masks
from multiflow.tasks.task import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@exclusively("task_model")
def task_model(model: nn.Module, task: str, masks: Masks | None = None, **options: Any) -> PreTrainedModel:
    """Build the model of a task from a pretrained one, which stays as it is.

    Args:
        model: a pretrained model of a known family.
        task: ``retrieval``, ``captioning``, ``vqa`` or ``classification``.
        masks: which weights of the pretrained model are kept; the others are zero wherever they go on.
        options: of the task and the family: ``image_size``, ``classes`` (classification), ``mask_decoder`` (vqa), ...

    Returns:
        The task model, in evaluation mode; it takes a batch as keyword arguments and returns its ``loss``.

    Raises:
        MultiflowError: there is no such task, the model cannot do it, the masks are those of another model, or an
            option is unknown or missing.

    >>> model = mf.load_model("xvlm-shapes")                                        # doctest: +SKIP
    >>> sparse = mf.prune(model, "magnitude", 0.75).masks[0.75]                     # doctest: +SKIP
    >>> mf.task_model(model, "vqa", sparse, image_size=96)(**batch).loss            # doctest: +SKIP
    """
    if masks is not None:
        if not isinstance(masks, Masks):
            raise MultiflowError(f"masks is a {type(masks).__name__}; expected mf.Masks, such as mf.Masks.load(file)")
        masks.find_weights(model)
    else:  # the same guards: nothing unfit goes on into a task
        check_fit(model)
    built, places = build_task_model(model, task, **options)
    if masks is not None:
        task_masks(masks, places, built).apply_(built)
        _zero_buffers(masks, places, built)
    return built


def build_task_model(model: nn.Module, task: str, **options: Any) -> tuple[PreTrainedModel, Places]:
    """Build the dense model of a task, and say where in it the layers of the pretrained one are; see `task_model`."""
    builder = TASKS[task].of(model).builder(model)
    known = {p.name: p for p in signature(builder).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
    for name in options:
        if name not in known:
            raise unknown(f"option of task '{task}'", name, known)
    for name, parameter in known.items():
        if parameter.default is Parameter.empty and name not in options:
            raise MultiflowError(f"task '{task}' needs the option {name}=, which was not given")
    return builder(model, **options)


def task_masks(masks: Masks, places: Places, task_model: nn.Module) -> Masks:
    """Move the masks of a pretrained model to the layers of the task model that start from its weights.

    Args:
        masks: of the pretrained model.
        places: as `build_task_model` gives them; empty where the task model is the pretrained one as it is. Places
            whose weight is no parameter, such as momentum copies, have no mask of their own.
        task_model: built from that model.

    Raises:
        MultiflowError: a layer of the masks has no place, as its name or shape is that of another model.
    """
    if not places:
        masks.find_weights(task_model)
        return masks
    owners = {path: layer for layer in adapter_for(task_model).layout(task_model).layers for path in layer.paths}
    moved: dict[str, tuple[Layer, str]] = {}
    for name, layer in masks.layout.items():
        if name not in places:
            raise MultiflowError(
                f"the masks cover layer '{name}', which is none that the model takes into a task"
                f"{did_you_mean(name, places)}"
            )
        for path in places[name]:
            if path not in owners:
                if isinstance(_weight(task_model, path), nn.Parameter):
                    raise MultiflowError(
                        f"layer '{name}' goes to '{path}', which the task model's adapter leaves dense"
                    )
                continue
            owner = owners[path]
            if owner.shape != layer.shape:
                raise MultiflowError(
                    f"the masks are those of another model: '{path}' has shape {owner.shape}, its mask {layer.shape}"
                )
            moved[owner.name] = owner, name
    ordered = {layer.name: moved[layer.name] for layer in owners.values() if layer.name in moved}
    return Masks(
        Layout(tuple(layer for layer, _ in ordered.values())),
        {path: masks.packed[name] for path, (_, name) in ordered.items()},
        {path: masks.weights[name] for path, (_, name) in ordered.items() if name in masks.weights},
        masks.settings,
    )


@torch.no_grad()
def _zero_buffers(masks: Masks, places: Places, task_model: nn.Module) -> None:
    """Zero the dropped weights of the places that are buffers, such as momentum copies."""
    for name in masks:
        for path in places.get(name, ()):
            weight = _weight(task_model, path)
            if not isinstance(weight, nn.Parameter):
                weight.masked_fill_(~masks[name].to(weight.device), 0.0)


def _weight(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path).weight  # type: ignore[return-value]
