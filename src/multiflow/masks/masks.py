"""`Masks`: which weights of a model are kept, one bit each."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.types import Layer, Layout

FORMATS = ("multiflow", "original")
"""Of mask files: our own, and that of the original release."""


@dataclass(frozen=True)
class Masks(Mapping[str, Tensor]):
    """A mapping from layer name to a CPU bool tensor ``(out, in)``, True = kept, in layout order.

    Bits are packed eight to a byte inside and unpacked when looked up.

    Args:
        layout: the layers, with their shapes and groups.
        packed: layer name -> uint8 array of ``ceil(size / 8)`` bytes, row-major, first weight in the highest bit.
        weights: layer name -> hash of the bytes of the weight that the mask was made for; may be empty.
        settings: how the masks were made.
        names: layer name -> its parameter name in the original release; may be empty.

    Example:
        >>> masks = mf.Masks.load("mask-0.75.safetensors")      # doctest: +SKIP
        >>> masks.apply_(model).sparsity                        # doctest: +SKIP
        0.75
    """

    layout: Layout
    packed: Mapping[str, np.ndarray] = field(repr=False)
    weights: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_tensors(cls, layout: Layout, tensors: Mapping[str, Tensor], **fields: Any) -> Masks:
        """Pack bool tensors, one for every layer of the layout."""
        for name in [*layout, *tensors]:
            if name not in tensors or name not in layout:
                where = "has no mask" if name in layout else "is not in the layout"
                raise MultiflowError(f"layer '{name}' {where}; masks need exactly the layers of the layout")
            if tensors[name].shape != layout[name].shape or tensors[name].dtype != torch.bool:
                raise MultiflowError(
                    f"the mask of layer '{name}' is {tensors[name].dtype} {tuple(tensors[name].shape)}; "
                    f"expected torch.bool {layout[name].shape}"
                )
        return cls(layout, {name: pack(tensors[name]) for name in layout}, **fields)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.packed:
            raise KeyError(f"no mask for layer '{name}'{did_you_mean(name, self.packed)}")
        layer = self.layout[name]
        return unpack(self.packed[name], layer.size).view(layer.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    def __eq__(self, other: object) -> bool:
        """Whether both keep the same weights of the same layers."""
        if not isinstance(other, Masks):
            return NotImplemented
        return self.layout == other.layout and all(
            np.array_equal(self.packed[name], other.packed[name]) for name in self
        )

    __hash__ = None  # type: ignore[assignment]

    def dropped(self, name: str) -> int:
        """Count the weights of a layer that are dropped."""
        return self.layout[name].size - int(np.bitwise_count(self.packed[name]).sum(dtype=np.int64))

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are dropped."""
        return sum(map(self.dropped, self)) / self.layout.size

    def sparsities(self) -> dict[str, float]:
        """Layer name -> share of its weights that are dropped."""
        return {name: self.dropped(name) / self.layout[name].size for name in self}

    def group_sparsities(self) -> dict[str, float]:
        """Group -> share of its weights that are dropped."""
        return {
            group: sum(self.dropped(layer.name) for layer in layers) / sum(layer.size for layer in layers)
            for group, layers in self.layout.groups.items()
        }

    def apply_(self, model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Masks:
        """Zero the dropped weights of the model in place; nothing is touched unless every layer fits.

        Weights that differ from those the masks were made for are a warning: the architecture fits, the values do not.
        So are masks of a method that changes the weights it keeps, on a model that does not hold them: `Result.apply_`
        writes both.

        Args:
            model: the one that was pruned.
            weights: layer name -> ``(out, in)``, the changed weights to write where the masks keep.
        """
        parameters = self.find_weights(model)
        changed = [name for name in self if not self._made_for(name, parameters[name][0])]
        if changed:
            warnings.warn(
                f"the masks were made for other weights: {len(changed)} of {len(self)} layers differ, "
                f"first '{changed[0]}'; the architecture fits, so they are applied all the same",
                stacklevel=2,
            )
        if weights is None and self.settings.get("changes_weights") and not self.is_applied(model):
            warnings.warn(
                f"masks of '{self.settings.get('method')}' belong to changed weights, which are not written here; "
                "write both with result.apply_(model, sparsity) or mf.Result.load(folder).apply_(model, sparsity)",
                stacklevel=2,
            )
        with torch.no_grad():
            for name in self:
                for weight in parameters[name]:
                    if weights is not None:
                        weight.copy_(weights[name])
                    weight.masked_fill_(~self[name].to(weight.device), 0.0)
        return self

    def is_applied(self, model: nn.Module) -> bool:
        """Whether the model is zero already wherever the masks drop."""
        found = self.find_weights(model)
        return all(self._is_zero(name, weight) for name, parameters in found.items() for weight in parameters)

    def find_weights(self, model: nn.Module) -> dict[str, tuple[nn.Parameter, ...]]:
        """Layer name -> the distinct parameters of the model behind it; a misfit is an error that names the layer."""
        modules = dict(model.named_modules(remove_duplicate=False))
        return {layer.name: _weights(modules, layer) for layer in self.layout.layers}

    def rename(self, layout: Layout, names: Mapping[str, str]) -> Masks:
        """Give masks that were read from a file of the original release the layers of a model, checking every one.

        >>> masks = mf.Masks.load("masks.pth")                                                  # doctest: +SKIP
        >>> masks = masks.rename(mf.adapter_for(model).layout(model), mf.original_names(model)) # doctest: +SKIP
        """
        from multiflow.masks.original import rename

        return rename(self, layout, names)

    def save(self, path: str | Path, format: str = "multiflow", names: Mapping[str, str] | None = None) -> Path:
        """Write the masks to one file; return its path.

        Args:
            path: of the file, which is written whole or not at all.
            format: ``multiflow`` (safetensors, one bit a weight, with settings and checksum) or ``original`` (the torch
                file of the original release, one byte a weight).
            names: for ``original``, layer -> its original parameter name, ``mf.original_names(model)``; by default
                those that the masks carry.
        """
        if format not in FORMATS:
            raise unknown("mask format", format, FORMATS)
        if format == "original":
            from multiflow.masks import original

            return original.save(self, Path(path), self.names if names is None else names)
        from multiflow.masks import io

        return io.save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Masks:
        """Read masks from a file in either format; a truncated or altered one, or one with code, is an error.

        Masks of the original release go by its names until `rename` puts them on the layers of a model.
        """
        from multiflow.masks import io, original

        return original.load(Path(path)) if original.is_torch_file(Path(path)) else io.load(Path(path))

    def _made_for(self, name: str, weight: Tensor) -> bool:
        if name not in self.weights or hash_weight(weight) == self.weights[name]:
            return True
        # masks applied before are no other weights: what must be zero is zero already
        return self.dropped(name) > 0 and self._is_zero(name, weight)

    def _is_zero(self, name: str, weight: Tensor) -> bool:
        """Whether a weight is zero wherever its mask drops."""
        return not bool(weight.detach().cpu()[~self[name]].any())


def pack(mask: Tensor) -> np.ndarray:
    """Pack a bool tensor into bytes, row-major, first entry in the highest bit."""
    return np.packbits(mask.cpu().contiguous().numpy())


def unpack(packed: np.ndarray, size: int) -> Tensor:
    """Return the bool tensor ``(size,)`` that was packed."""
    return torch.from_numpy(np.unpackbits(packed, count=size).view(np.bool_))


def hash_weight(weight: Tensor) -> str:
    """Hash the bytes of a weight: 8 hexadecimal digits of CRC-32, which tells weights apart in one fast pass."""
    return f"{zlib.crc32(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data):08x}"


def _weights(modules: Mapping[str, nn.Module], layer: Layer) -> tuple[nn.Parameter, ...]:
    found: dict[int, nn.Parameter] = {}
    for path in layer.paths:
        weight = getattr(modules.get(path), "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise MultiflowError(
                f"the masks are those of another model: it has no layer '{path}'"
                f"{did_you_mean(path, (name for name, m in modules.items() if isinstance(m, nn.Linear)))}"
            )
        if tuple(weight.shape) != layer.shape:
            raise MultiflowError(
                f"the masks are those of another model: layer '{path}' has shape {tuple(weight.shape)}, "
                f"its mask {layer.shape}"
            )
        found[id(weight)] = weight
    return tuple(found.values())
