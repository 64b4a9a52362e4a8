"""Mask files on the command line: opened for a model, shown by group and layer, compared."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text
from safetensors import SafetensorError, safe_open
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.cli.console import megabytes, percent, show, table
from multiflow.families.opening import put_on
from multiflow.masks import Masks, compare, is_original, total
from multiflow.pruning.result import changed_weights


def open_masks(source: str, model: nn.Module | None = None) -> Masks:
    """Read masks; those of the original release are put on the layers of the model, or keep their names without one."""
    masks = Masks.load(source)
    return masks if model is None else fitted(masks, source, model)


def fitted(masks: Masks, source: str | Path, model: nn.Module) -> Masks:
    """Return the masks that a file held with the names of a model's layers: those of the original release lack them."""
    return put_on(model, masks) if is_original(Path(source)) else masks


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


BAR = 20


def is_mask_file(source: str) -> bool:
    """Whether a path leads to a file with masks (a model's checkpoint may be a safetensors or torch file as well)."""
    path = Path(source)
    if is_original(path):
        return True
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "numpy") as file:
            return "multiflow" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.name.startswith("mask")  # a damaged one: reading it says what is wrong


def show_masks(source: str, model: nn.Module | None = None) -> None:
    masks = open_masks(source, model)
    rows = [
        (
            name,
            masks.layout[name].group,
            f"{masks.dropped(name):,}",
            f"{masks.layout[name].size:,}",
            percent(share),
            bar(share),
        )
        for name, share in masks.sparsities().items()
    ]
    show(table(source, ["layer", "group", "dropped", "weights", "sparsity", ""], rows))
    groups = [
        (group, sum(masks.dropped(layer.name) for layer in layers), sum(layer.size for layer in layers))
        for group, layers in masks.layout.groups.items()
    ]
    groups.append(("in all", sum(map(masks.dropped, masks)), masks.layout.size))
    cells = [
        (name, f"{dropped:,}", f"{size:,}", percent(dropped / size), bar(dropped / size))
        for name, dropped, size in groups
    ]
    show(table("", ["group", "dropped", "weights", "sparsity", ""], cells))
    settings = [(name, plain(value)) for name, value in masks.settings.items()]
    settings.append(("format", "of the original release" if is_original(Path(source)) else "of this library"))
    settings.append(("file", megabytes(Path(source).stat().st_size)))
    show(table("", ["setting", "value"], settings))


def compare_masks(first: str, second: str, model: nn.Module | None = None) -> None:
    one, other = open_two_masks(first, second, model)
    layers = compare(one, other)
    groups = {group: total([layers[x.name] for x in of]) for group, of in one.layout.groups.items()}
    everything = {**groups, "in all": total(list(layers.values()))}
    headers = ["agreement", "overlap", "sparsity of the first", "of the second"]
    a, b = one.sparsities(), other.sparsities()
    rows = [
        (name, percent(x.agreement), percent(x.overlap), percent(a[name]), percent(b[name]))
        for name, x in layers.items()
    ]
    show(table(f"{first} and {second}", ["layer", *headers], rows))
    a, b = ({**m.group_sparsities(), "in all": m.sparsity} for m in (one, other))
    rows = [(n, percent(x.agreement), percent(x.overlap), percent(a[n]), percent(b[n])) for n, x in everything.items()]
    show(table("", ["group", *headers], rows))
    show("agreement: weights on which both decide alike; overlap: weights that both keep, of those that either keeps")


def bar(share: float) -> Text:
    """Draw a share of zeros; from 99 % on it is red: hardly a signal passes."""
    full = round(share * BAR)
    return Text("\u2588" * full + "\u2591" * (BAR - full), style="red" if share >= 0.99 else "")


def plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)
