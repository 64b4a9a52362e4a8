"""Masks of a model from a mask file of either format."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.families import adapter_for
from multiflow.families.original import original_names
from multiflow.masks import Masks, is_original
from multiflow.pruning.result import changed_weights


def open_masks(source: str, model: nn.Module | None = None) -> Masks:
    """Read masks; those of the original release are put on the layers of the model, or keep their names without one."""
    masks = Masks.load(source)
    return masks if model is None or not is_original(Path(source)) else put_on(model, masks)


def put_on(model: nn.Module, masks: Masks) -> Masks:
    """Put masks of the original release on the layers of a model of a known family."""
    return masks.rename(adapter_for(model).layout(model), original_names(model))


def write_changed_(model: nn.Module, masks: Masks, path: Path) -> None:
    """Write the weights that a pruner changed, read from beside the file of its masks, into the model that it pruned.

    A model that is zero already wherever the masks drop holds them, or has been trained since: it is left as it is.
    """
    if not masks.settings.get("changes_weights"):
        return
    if not masks.is_applied(model):
        masks.apply_(model, changed_weights(path, masks))


def open_two_masks(first: str, second: str, model: nn.Module | None = None) -> tuple[Masks, Masks]:
    """Read two masks on the same layers: those of the model, else of the file of our own, else of the first."""
    one, other = open_masks(first, model), open_masks(second, model)
    if model is not None or not (is_original(Path(first)) or is_original(Path(second))):
        return one, other
    try:
        if is_original(Path(second)):
            return one, other.rename(one.layout, one.names)
        return one.rename(other.layout, other.names), other
    except MultiflowError as error:
        raise MultiflowError(f"{error} (without --model, layers go by their names in the two files)") from error
