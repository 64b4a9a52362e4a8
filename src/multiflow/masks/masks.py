"""`Masks`: which weights of a model are kept, one bit each."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.display import bar, html_table, percent, shares
from multiflow.base.errors import MultiflowError, counted, did_you_mean, unknown
from multiflow.base.guards import alone, check_layer, check_module, check_overlap, check_values
from multiflow.base.registry import resolve
from multiflow.base.types import Layer, Layout, WeightPlace, places_of, weights_of
from multiflow.base.wrapped import inside, layer_places
from multiflow.masks import files
from multiflow.masks.select import pack, unpack

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

    def __repr__(self) -> str:
        method = f"{self.settings['method']}, " if "method" in self.settings else ""
        zeros = f"{percent(self.sparsity)} zeros: {shares(self.group_sparsities())}"
        return f"Masks({method}{counted(len(self), 'layer')}, {counted(self.layout.size, 'weight')}, {zeros})"

    def _repr_html_(self) -> str:
        zeros = self.group_sparsities()
        rows = [
            [group, str(len(layers)), f"{sum(layer.size for layer in layers):,}", bar(zeros[group])]
            for group, layers in self.layout.groups.items()
        ]
        return html_table(repr(self), ["group", "layers", "weights", "zeros"], rows)

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
            weights: layer name -> ``(out, in)``, the changed weights to write where the masks keep; and, beside them,
                name of a parameter -> what else was trained, such as biases and norms.
        """
        with alone(model):
            parameters = self.find_weights(model)
            others = self.find_others(model, weights or {})
            self.warn_of_misfit(model, weights, stacklevel=3)
            with torch.no_grad():
                for name in self:
                    for weight in parameters[name]:
                        if weights is not None:
                            weight.copy_(weights[name])
                        weight.masked_fill_(~self[name].to(weight.device), 0.0)
                for name, parameter in others.items():
                    parameter.copy_(weights[name])  # type: ignore[index]
            return self

    def warn_of_misfit(
        self, model: nn.Module, weights: Mapping[str, Tensor] | None = None, *, stacklevel: int = 2
    ) -> None:
        """Warn where a model fits the masks but does not hold the weights that belong to them.

        Args:
            model: with the layers of the masks, which may be applied already.
            weights: the changed weights that are written with them, or None.
            stacklevel: of the warning, as in `warnings.warn`.
        """
        parameters = self.find_weights(model)
        changed = [name for name in self if not self._made_for(name, parameters[name][0])]
        if changed:
            warnings.warn(
                f"the masks were made for other weights: {len(changed)} of {len(self)} layers differ, "
                f"first '{changed[0]}'; the architecture fits, so they are applied all the same",
                stacklevel=stacklevel,
            )
        if weights is None and self.settings.get("changes_weights") and not self.is_applied(model):
            warnings.warn(
                f"masks of '{self.settings.get('method')}' belong to changed weights, which are not written here; "
                "write both with result.apply_(model, sparsity) or mf.Result.load(folder).apply_(model, sparsity), or "
                "give result.weights[sparsity] with the masks",
                stacklevel=stacklevel,
            )

    def is_applied(self, model: nn.Module) -> bool:
        """Whether the model is zero already wherever the masks drop."""
        found = self.find_weights(model)
        return all(self._is_zero(name, weight) for name, parameters in found.items() for weight in parameters)

    def find_weights(self, model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
        """Layer name -> the distinct weights ``(out, in)`` of the model behind it: parameters, or views of some.

        Raises:
            MultiflowError: a layer is missing or has another shape; it is named.
        """
        return {
            name: tuple({id(place.whole): place.weight for place in places}.values())
            for name, places in self.find_places(model).items()
        }

    def find_places(self, model: nn.Module) -> dict[str, tuple[WeightPlace, ...]]:
        """Layer name -> all the places of its weight in the model; raises what `find_weights` does."""
        check_module(model)
        there = layer_places(model)
        modules = {path: of[0] for path, of in there.items()}
        known: dict[str, set[str]] = {}  # path of a module -> its parameters that hold layers
        for layer in self.layout.layers:
            for path in layer.paths:
                if (at := layer.module(path)) in modules:
                    if at not in known:
                        known[at] = {part.parameter for part in weights_of(at, modules[at]).values() if part}
                    if layer.part and layer.part.parameter in modules[at]._parameters:
                        known[at].add(layer.part.parameter)
        for path, names in known.items():
            for module in there[path]:
                check_layer(path, module, modules, names)
        found = {layer.name: _places(there, layer) for layer in self.layout.layers}
        check_overlap(model, [(name, place.whole) for name, places in found.items() for place in places])
        return found

    def find_others(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Name -> parameter of the model, of what changed besides layers; a misfit is an error that names it."""
        own = dict(inside(model).named_parameters(remove_duplicate=False))
        found: dict[str, nn.Parameter] = {}
        for name, value in weights.items():
            if name in self.layout:
                continue
            if name not in own:
                raise MultiflowError(
                    f"the changed weights are those of another model: it has no parameter '{name}'"
                    f"{did_you_mean(name, own)}; use the model that they were made for"
                )
            if own[name].shape != value.shape:
                raise MultiflowError(
                    f"the changed weights are those of another model: parameter '{name}' has shape "
                    f"{tuple(own[name].shape)}, what is to be written {tuple(value.shape)}; use the model that they "
                    "were made for"
                )
            found[name] = own[name]
        return found

    def rename(self, layout: Layout, names: Mapping[str, str]) -> Masks:
        """Put masks on the layers of a layout, of which they may go by original names or by module paths.

        Args:
            layout: the model's layers. A shared weight may have several masks, one for each of its names, which agree.
            names: layer -> its original parameter name; a layer without one goes by its module paths.

        Raises:
            MultiflowError: masks of layers that the layout lacks, layers without a mask, another shape, or masks of one
                weight that differ.

        >>> masks = mf.Masks.load("masks.pth")                                                  # doctest: +SKIP
        >>> masks = masks.rename(mf.adapter_for(model).layout(model), mf.original_names(model)) # doctest: +SKIP
        """
        # 1. by which name each layer is found: original names win over the module path of another layer
        layers: dict[str, Layer] = {}
        for layer in layout.layers:
            for path in layer.paths:
                layers.setdefault(names.get(path, f"{path}.weight"), layer)
        for layer in layout.layers:
            for path in layer.paths:
                layers.setdefault(f"{path}.weight", layer)

        # 2. masks and layers are the same ones
        given = {name: self.names.get(name, f"{name}.weight") for name in self}
        extra = [name for name in given.values() if name not in layers]
        there = {layers[name].name for name in given.values() if name in layers}
        missing = [names.get(name, f"{name}.weight") for name in layout if name not in there]
        if extra or missing:
            wrong = [f"{_some(extra)} is masked but no prunable layer"] if extra else []
            wrong += [f"{_some(missing)} is prunable but has no mask"] if missing else []
            raise MultiflowError(
                f"the masks cover other layers than the model: {', '.join(wrong)}; "
                "use the model that they were made for"
            )

        # 3. one mask for each layer
        first: dict[str, str] = {}
        for name, original in given.items():
            layer, shape = layers[original], self.layout[name].shape
            if shape != layer.shape:
                raise MultiflowError(
                    f"the masks are those of another model: layer '{original}' has shape {layer.shape}, its mask "
                    f"{shape}; use the model that they were made for"
                )
            other = first.setdefault(layer.name, name)
            if not np.array_equal(self.packed[other], self.packed[name]):
                raise MultiflowError(
                    f"'{given[other]}' and '{original}' are one weight, but their masks differ; keep one of them"
                )
        return Masks(
            layout,
            {layer: self.packed[first[layer]] for layer in layout},
            {layer: self.weights[first[layer]] for layer in layout if first[layer] in self.weights},
            self.settings,
            {layer: names.get(layer, given[first[layer]]) for layer in layout},
        )

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
            return files.save_original(self._by_original_name(self.names if names is None else names), Path(path))
        return files.save(
            files.Stored(self.layout, dict(self.packed), self.weights, self.settings, self.names), Path(path)
        )

    @staticmethod
    def load(path: str | Path, sparsity: float | None = None, *, inverted: bool = False) -> Masks:
        """Read masks from a file in either format; a truncated or altered one, or one with code, is an error.

        Masks of the original release go by its names until `rename` puts them on the layers of a model. If they keep
        as much as the name of their file or folder says they drop, a warning says that they may be inverted.

        Args:
            path: of the file.
            sparsity: share of the weights that they are said to drop; None = nothing is known of it.
            inverted: read True as pruned, as some tools write it, and turn the masks around.

        Raises:
            MultiflowError: no such file, a damaged one, or masks that drop another share than was said.
        """
        path = Path(path)
        if os.path.isdir(path) and (there := files.mask_files(path)):
            listed = ", ".join(str(file) for file in there.values())
            raise MultiflowError(f"'{path}' is a folder; name one of the mask files in it: {listed}")
        published = files.is_torch_file(path)
        masks = Masks(*(files.load_original(path) if published else files.load(path)))
        if inverted:
            masks = replace(masks, packed={name: pack(~masks[name]) for name in masks})
        files.check_share(path, masks.sparsity, sparsity, by_name=published)
        return masks

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, message: str | None = None
    ) -> str:
        """Upload the masks to the Hugging Face Hub, with a card that says how they were made; return the address.

        Args:
            repository: ``user/name``; one that is not there is made. Masks at other sparsities in it stay.
            private: whether a repository that is made is private.
            token: with the right to write; None = the one that the Hub's client has stored.
            message: of the commit.

        Raises:
            MultiflowError: the Hub refuses or cannot be reached; or the masks belong to changed weights, which only
                ``result.push_to_hub`` uploads with them.
        """
        return resolve("multiflow.masks.sharing:push_masks")(self, repository, private, token, message)

    @staticmethod
    def from_pretrained(
        source: str | Path, sparsity: float | None = None, *, revision: str | None = None, token: str | None = None
    ) -> Masks:
        """Read masks from a repository on the Hugging Face Hub, from a folder or from a file.

        Args:
            source: ``user/name``, the folder of a run, or a file.
            sparsity: which of several, as it was asked for; None where there is one.
            revision: of the repository: a branch, tag or commit.
            token: for a private repository.

        Raises:
            MultiflowError: there is no such place, it holds no masks, or none at this sparsity: those there are listed.

        >>> mf.Masks.from_pretrained("user/masks", sparsity=0.75)      # doctest: +SKIP
        """
        return Masks.load(
            resolve("multiflow.masks.sharing:find_mask_file")(source, sparsity, revision, token), sparsity
        )

    def _by_original_name(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        layer_of: dict[str, str] = {}
        for layer in self:
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
        return {name: self[layer] for name, layer in layer_of.items()}

    def _made_for(self, name: str, weight: Tensor) -> bool:
        if name not in self.weights or hash_weight(weight) == self.weights[name]:
            return True
        # masks applied before are no other weights: what must be zero is zero already
        return self.dropped(name) > 0 and self._is_zero(name, weight)

    def _is_zero(self, name: str, weight: Tensor) -> bool:
        """Whether a weight is zero wherever its mask drops."""
        return not bool(weight.detach().cpu()[~self[name]].any())


def hash_weight(weight: Tensor) -> str:
    """Hash the bytes of a weight: 8 hexadecimal digits of CRC-32, which tells weights apart in one fast pass."""
    return f"{zlib.crc32(weight.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data):08x}"


def _places(modules: Mapping[str, tuple[nn.Module, ...]], layer: Layer) -> tuple[WeightPlace, ...]:
    found: list[WeightPlace] = []
    for path in layer.paths:
        places = places_of(modules, layer, path)
        if not places or not all(map(_has_part, places)):
            raise MultiflowError(
                f"the masks are those of another model: it has no layer '{path}'"
                f"{did_you_mean(path, (name for at, m in modules.items() for name in weights_of(at, m[0])))}"
                "; use the model that they were made for"
            )
        for place in places:
            if tuple(place.weight.shape) != layer.shape:
                raise MultiflowError(
                    f"the masks are those of another model: layer '{path}' has shape {tuple(place.weight.shape)}, "
                    f"its mask {layer.shape}; use the model that they were made for"
                )
            check_values({path: place.whole})
        found += places
    return tuple(found)


def _has_part(place: WeightPlace) -> bool:
    """Whether the parameter has as many dimensions, matrices and rows as the part says."""
    part, shape = place.part, tuple(place.whole.shape)
    if part is None:
        return True
    if part.index is not None:
        return len(shape) == 3 and part.index < shape[0] and part.rows is None
    return len(shape) == 2 and (part.rows is None or part.rows[1] <= shape[0])


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
