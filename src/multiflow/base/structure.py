"""The sizes of a smaller model that its config cannot say: a file beside the config, read when the model is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.types import is_conv1d

STRUCTURE_FILE = "structure.json"
FIX = "write the folder again with mf.export(model, masks, path, compact=True)"
HEAD_COUNTS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads")
SIZED_BY_HEADS = ("all_head_size", "inner_dim", "embed_dim", "split_size")
"""Names of whole numbers in attention modules: how many heads there are, and how wide they are together."""


FEATURES = "out_features", "in_features"


@dataclass(frozen=True)
class Structure:
    """How a model differs from the one that its config describes.

    Args:
        sizes: path of a linear layer -> its ``(out, in)``.
        attributes: path of a module -> name of a whole number that it holds, such as that of its heads -> the number.
    """

    sizes: Mapping[str, tuple[int, int]]
    attributes: Mapping[str, Mapping[str, int]]

    def write(self, folder: Path) -> Path:
        """Write `STRUCTURE_FILE` into a folder."""
        return write_facts(folder / STRUCTURE_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Structure:
        """Read it.

        Raises:
            MultiflowError: the file is damaged, or holds something else.
        """
        said = read_facts(folder / STRUCTURE_FILE, "structure of a smaller model", FIX)
        try:
            sizes = {str(path): (int(size[0]), int(size[1])) for path, size in said["sizes"].items()}
            attributes = {
                str(path): {str(name): int(value) for name, value in of.items()}
                for path, of in said["attributes"].items()
            }
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise MultiflowError(f"'{folder / STRUCTURE_FILE}' does not say sizes ({error!r}); {FIX}") from error
        return cls(sizes, attributes)

    def apply_(self, model: nn.Module) -> None:
        """Give the layers of a model these sizes in place; what they hold is lost. Shared weights stay shared.

        Raises:
            MultiflowError: the model has no such layer or number, or the layer would grow.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        fresh: dict[int, Any] = {}
        for path, (out, inner) in self.sizes.items():
            module: Any = modules.get(path)
            weight = getattr(module, "weight", None)
            if not (isinstance(module, nn.Linear) or is_conv1d(module)) or not isinstance(weight, Tensor):
                raise MultiflowError(f"{STRUCTURE_FILE} names layer '{path}', which the model does not have; {FIX}")
            before = matrix_of(module).shape
            if not (0 < out <= before[0] and 0 < inner <= before[1]) and id(weight) not in fresh:
                raise MultiflowError(
                    f"{STRUCTURE_FILE} makes layer '{path}' {out} x {inner}, its config "
                    f"{before[0]} x {before[1]}; {FIX}"
                )
            resize_(module, torch.arange(out), torch.arange(inner), fresh)
        set_attributes_(model, self.attributes)


def resize_(module: Any, rows: Tensor, columns: Tensor, fresh: dict[int, Any]) -> None:
    """Keep some rows and columns of a linear layer, or a ``Conv1D`` of transformers, in place.

    Args:
        module: the layer; its weight and bias may be parameters or buffers.
        rows: numbers of the outputs that stay.
        columns: numbers of the inputs that stay.
        fresh: identity of a weight -> what it has become, for others that share it; this one is added.
    """
    for name in ("weight", "bias"):
        old = getattr(module, name, None)
        if old is None:
            continue
        if id(old) not in fresh:
            here, there = rows.to(old.device), columns.to(old.device)
            new = old.detach()[here].clone() if name == "bias" else matrix_of(module).detach()[here][:, there].clone()
            new = new.T.contiguous() if name == "weight" and is_conv1d(module) else new
            is_parameter = isinstance(old, nn.Parameter)
            made = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
            fresh[id(old)] = (made, old)  # the old one is kept as well, so that its identity stays its own
            fresh[id(made)] = (made, made)
        setattr(module, name, fresh[id(old)][0])
    for name, size in zip(("nf", "nx") if is_conv1d(module) else FEATURES, (len(rows), len(columns)), strict=True):
        setattr(module, name, size)


def matrix_of(module: Any) -> Tensor:
    """Return the weight ``(out, in)`` of a linear layer or a ``Conv1D`` of transformers."""
    return module.weight.mT if is_conv1d(module) else module.weight


def set_attributes_(model: nn.Module, attributes: Mapping[str, Mapping[str, int]]) -> None:
    """Set whole numbers that modules hold."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, of in attributes.items():
        for name, value in of.items():
            if not isinstance(getattr(modules.get(path), name, None), int):
                raise MultiflowError(f"{STRUCTURE_FILE} sets '{path}.{name}', which the model does not have; {FIX}")
            setattr(modules[path], name, value)


def structure_of(model: Any) -> Structure | None:
    """Return how a model differs from the one that its config describes; None where it does not, or has none."""
    plain = described(model)
    if plain is None:
        return None
    theirs, ours = (dict(one.named_modules(remove_duplicate=False)) for one in (plain, model))
    sizes: dict[str, tuple[int, int]] = {}
    attributes: dict[str, dict[str, int]] = {}
    for path, module in ours.items():
        other: Any = theirs.get(path)
        linear = isinstance(module, nn.Linear) or is_conv1d(module)
        if linear and module.weight.shape != getattr(other, "weight", module.weight).shape:
            out, inner = matrix_of(module).shape
            sizes[path] = (out, inner)
        numbers = {
            name: value
            for name, value in vars(module).items()
            if name in (*HEAD_COUNTS, *SIZED_BY_HEADS) and isinstance(value, int) and vars(other).get(name) != value
        }
        if numbers:
            attributes[path] = numbers
    return Structure(sizes, attributes) if sizes or attributes else None


def described(model: Any) -> nn.Module | None:
    """Build the model that a config describes, without values; None where it cannot be built."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    with suppress(Exception), torch.device("meta"):  # whatever a class wants beside its config, it is not built then
        return type(model)(copy.deepcopy(config))
    return None


def write_structure(model: Any, folder: Path) -> Path | None:
    """Write the sizes that the config of a model cannot say into its folder, if there are any; return the file."""
    structure = structure_of(model) if getattr(model, "config", None) is not None else None
    return None if structure is None else structure.write(folder)
