"""Task models start from a pretrained one: its weights are copied to where they go on, the others are drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.families.family import Places

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Task = TypeVar("Task", bound="PreTrainedModel")
Source = Callable[[str], str | None]
"""Module or parameter path in the task model -> where in the pretrained model it starts from; None = nowhere."""


def derive(
    task_class: type[Task], config: Any, model: PreTrainedModel, source: Source, changed: Mapping[str, Tensor]
) -> Task:
    """Build a task model, in evaluation mode, on the device and in the dtype of the pretrained one.

    Args:
        task_class: class of the task model.
        config: its sizes.
        model: the pretrained model, which stays as it is and shares no memory with the task model.
        source: path in the task model -> path in the pretrained one; what starts from nothing there is drawn anew,
            parameters and buffers by the ``_init_weights`` of the module that holds them.
        changed: path in the pretrained model -> what to take instead, such as resized position embeddings.
    """
    from transformers import initialization

    with initialization.no_init_weights():
        task = task_class(config)
    task.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    task.tie_weights()
    names, given = task.state_dict().keys(), {**model.state_dict(), **changed}
    state = {name: given[origin] for name in names if (origin := source(name)) in given}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names if name not in state):
        task._init_weights(task.get_submodule(path))
    task.load_state_dict(state, strict=False)
    return task.eval()


def places_of(task: nn.Module, model: nn.Module, layers: str, source: Source) -> Places:
    """Map the prunable layers of the pretrained model to the modules of the task model that start from them.

    Args:
        task: the task model.
        model: the pretrained model.
        layers: regex of the module paths of its prunable layers.
        source: path in the task model -> path in the pretrained one.
    """
    places: dict[str, tuple[str, ...]] = {
        name: () for name, module in model.named_modules() if isinstance(module, nn.Linear) and re.search(layers, name)
    }
    for name, _ in task.named_modules(remove_duplicate=False):
        origin = source(name)
        if origin in places:
            places[origin] += (name,)
    return places


@torch.no_grad()
def resize_positions(positions: Float[Tensor, "1+cells width"], side: int) -> Float[Tensor, "1+side*side width"]:
    """Interpolate position embeddings bicubically (``align_corners=False``); that of [CLS], the first one, is kept.

    Args:
        positions: of [CLS] and of a square grid of patches, row by row.
        side: patches along each side of the new grid; an equal one changes nothing.

    Returns:
        A tensor of its own, in the dtype of ``positions``.

    Raises:
        MultiflowError: the patches are no square grid.

    >>> resize_positions(torch.zeros(1 + 14 * 14, 768), 24).shape
    torch.Size([577, 768])
    """
    old = isqrt(max(len(positions) - 1, 0))
    if not len(positions) or 1 + old * old != len(positions):
        raise MultiflowError(
            f"there are {len(positions)} position embeddings; expected that of [CLS] and a square grid"
        )
    if side == old:
        return positions.detach().clone()
    grid = positions[1:].float().unflatten(0, (old, old)).permute(2, 0, 1)
    resized = F.interpolate(grid[None], size=(side, side), mode="bicubic", align_corners=False)[0]
    return torch.cat([positions[:1], resized.permute(1, 2, 0).flatten(0, 1).to(positions.dtype)])
