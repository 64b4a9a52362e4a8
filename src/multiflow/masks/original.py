"""Mask files in the format of the original release: a torch file, readable without this library.

``PARAMETER_pruning_mask`` -> tensor ``(out, in)`` of 0 and 1, 1 = kept, where PARAMETER is the name in the original
release (``....weight``). Masks of biases are passed over.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.files import read_torch, write_atomically
from multiflow.base.types import Layer, Layout
from multiflow.masks.masks import Masks, pack

SUFFIX = "_pruning_mask"
HEAD = 1 << 16
"""Bytes in which the first name of a torch file stands: both of its forms begin with the names."""


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins one: as a zip archive, or in old versions as a pickle."""
    head = _head(path, 9)
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:9] != b"{")  # { begins a safetensors header


def is_original(path: Path) -> bool:
    """Whether a file is a torch file with masks; a model's checkpoint may be a torch file as well."""
    return is_torch_file(path) and SUFFIX.encode() in _head(path, HEAD)


def save(masks: Masks, path: Path, names: Mapping[str, str]) -> Path:
    """Write masks as bool tensors, one byte a weight, under the original names of their layers."""
    layer_of: dict[str, str] = {}
    for layer in masks:
        if layer not in names:
            raise MultiflowError(f"names has no original name for layer '{layer}'{did_you_mean(layer, names)}")
        name = names[layer]
        if not name.endswith(".weight"):
            raise MultiflowError(f"names calls layer '{layer}' '{name}'; expected a parameter name, '....weight'")
        if layer_of.setdefault(name, layer) != layer:
            raise MultiflowError(
                f"layers '{layer_of[name]}' and '{layer}' have the same original name '{name}', but a file has one "
                "mask for each; share their weight, or save with format='multiflow'"
            )
    data = io.BytesIO()
    torch.save({f"{name}{SUFFIX}": masks[layer] for name, layer in layer_of.items()}, data)
    return write_atomically(path, data.getvalue())


def load(path: Path) -> Masks:
    """Read masks under their original names; the group of a layer is the first part of its name.

    Raises:
        MultiflowError: a file that is truncated, wants to run code, or holds anything but masks of 0 and 1.
    """
    layers: list[Layer] = []
    packed: dict[str, np.ndarray] = {}
    for key, value in _read(path).items():
        if not str(key).endswith((".weight" + SUFFIX, "bias" + SUFFIX)):
            raise MultiflowError(f"'{path}' is no mask file: it holds '{key}'; names of masks end in '{SUFFIX}'")
        if key.endswith("bias" + SUFFIX):
            continue
        name = key.removesuffix(".weight" + SUFFIX)
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise MultiflowError(f"'{path}': the mask '{key}' is no dense tensor; expected 0 or 1 for each weight")
        if value.dim() != 2 or not value.numel():
            raise MultiflowError(f"'{path}': the mask '{key}' has shape {tuple(value.shape)}; expected (out, in)")
        kept = value == 1
        if not (kept | (value == 0)).all():
            raise MultiflowError(f"'{path}': the mask '{key}' holds other values than 0 and 1; expected 1 = kept")
        layers.append(Layer(name, (value.shape[0], value.shape[1]), name.partition(".")[0]))
        packed[name] = pack(kept)
    if not layers:
        raise MultiflowError(f"'{path}' holds no masks; expected names that end in '.weight{SUFFIX}'")
    return Masks(Layout(tuple(layers)), packed, names={name: f"{name}.weight" for name in packed})


def rename(masks: Masks, layout: Layout, names: Mapping[str, str]) -> Masks:
    """Put masks on the layers of a layout, of which they may go by original names or by module paths.

    Args:
        masks: read from a file of the original release.
        layout: the model's layers. A shared weight may have several masks, one for each of its names: they must agree.
        names: layer -> its original parameter name; a layer without one goes by its module paths.

    Raises:
        MultiflowError: masks of layers that the layout lacks, layers without a mask, another shape, or masks of one
            weight that differ.
    """
    layers: dict[str, Layer] = {}
    for layer in layout.layers:  # original names first: they win over the module path of another layer
        for path in layer.paths:
            layers.setdefault(names.get(path, f"{path}.weight"), layer)
    for layer in layout.layers:
        for path in layer.paths:
            layers.setdefault(f"{path}.weight", layer)
    given = {name: masks.names.get(name, f"{name}.weight") for name in masks}
    extra = [name for name in given.values() if name not in layers]
    there = {layers[name].name for name in given.values() if name in layers}
    missing = [names.get(name, f"{name}.weight") for name in layout if name not in there]
    if extra or missing:
        wrong = [f"{_some(extra)} is masked but no prunable layer"] if extra else []
        wrong += [f"{_some(missing)} is prunable but has no mask"] if missing else []
        raise MultiflowError(
            f"the masks cover other layers than the model: {', '.join(wrong)}; use the model that they were made for"
        )

    first: dict[str, str] = {}
    for name, original in given.items():
        layer, shape = layers[original], masks.layout[name].shape
        if shape != layer.shape:
            raise MultiflowError(
                f"the masks are those of another model: layer '{original}' has shape {layer.shape}, its mask {shape}; "
                "use the model that they were made for"
            )
        other = first.setdefault(layer.name, name)
        if not np.array_equal(masks.packed[other], masks.packed[name]):
            raise MultiflowError(
                f"'{given[other]}' and '{original}' are one weight, but their masks differ; keep one of them"
            )
    return Masks(
        layout,
        {layer: masks.packed[first[layer]] for layer in layout},
        {layer: masks.weights[first[layer]] for layer in layout if first[layer] in masks.weights},
        masks.settings,
        {layer: names.get(layer, given[first[layer]]) for layer in layout},
    )


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _read(path: Path) -> Mapping[Any, Any]:
    content = read_torch(path, called=f"mask file '{path}'", wanted="tensors", kind="torch", mmap=True)
    if not isinstance(content, Mapping):
        raise MultiflowError(f"'{path}' holds a {type(content).__name__}; expected names -> masks")
    return content
