"""Original releases: how one names and sizes its weights, and how a file of it becomes a model.

Tensors are read without running code; the configs of a release are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multiflow.base.artifacts import read_foreign
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import exists, read_json, read_yaml
from multiflow.base.torch_files import read_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
NAMED = 3  # names in a message, before it says how many more there are


@dataclass(frozen=True)
class Original:
    """The original release of a family.

    Args:
        layers: regex of the module paths of the prunable linear layers.
        key: parameter name, in the file or in the model -> its name in the release; names that the release stores
            several times for one tensor map to one of them.
        build: sizes and the tensors of the file -> a model, its weights not yet filled in; None where files of the
            release are not read.
        absent: original name of a tensor that the file lacks, the model's own (for its shape), and the tensors of the
            file by original name -> what it is then, a tensor of its own; None where the file must have it.
        ignored: regex of names in the file that the model has no use for.
        presets: named sizes.
        translate: the tensors of a file -> the same in the forms that ``key`` and the model know, where they differ.
    """

    layers: str
    key: Callable[[str], str]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], PreTrainedModel] | None = None
    absent: Callable[[str, Tensor, Mapping[str, Tensor]], Tensor | None] = lambda name, like, given: None
    ignored: str = r"(?!)"
    presets: Mapping[str, Mapping[str, Any]] | None = None
    translate: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state


def fill(model: PreTrainedModel, state: Mapping[str, Tensor], original: Original, path: str) -> None:
    """Put the tensors of an original file into a model, whatever each of them calls a parameter.

    Args:
        model: as built by ``original.build``, usually on the meta device; afterwards in float32 on the CPU.
        state: name in the file -> tensor.
        original: the family's record.
        path: of the file, for the messages.

    Raises:
        MultiflowError: shapes that do not fit, or names that are missing, unexpected or contradict each other.
    """
    given = _by_original_name(original.translate(state), original, path)
    wanted = {key: original.key(key) for key in model.state_dict()}
    tensors = {name: tensor for name, (_, tensor) in given.items()}
    for key, value in model.state_dict().items():
        if wanted[key] not in given and (tensor := original.absent(wanted[key], value, tensors)) is not None:
            given[wanted[key]] = key, tensor
    hint = "pass {config=} with the sizes of this checkpoint"
    for key, value in model.state_dict().items():
        name, tensor = given.get(wanted[key], (key, value))
        if tensor.shape != value.shape:
            raise MultiflowError(
                f"'{path}': '{name}' has shape {tuple(tensor.shape)} in the file and {tuple(value.shape)} "
                f"in the model; {hint}",
                field="config",
            )
    missing = list(dict.fromkeys(name for name in wanted.values() if name not in given))
    unexpected = [name for key, (name, _) in given.items() if key not in wanted.values()]
    if missing or unexpected:
        wrong = [f"lacks {_some(missing)}"] if missing else []
        wrong += [f"holds {_some(unexpected)}, which the model does not have"] if unexpected else []
        raise MultiflowError(f"'{path}' {', and '.join(wrong)}; {hint}, and the family it belongs to", field="config")

    buffers = {wanted[key]: buffer.dtype for key, buffer in model.named_buffers() if key in wanted}
    filled = {
        name: tensor.to(buffers[name]) if name in buffers else nn.Parameter(tensor.float())
        for name, (_, tensor) in given.items()
    }
    model.load_state_dict({key: filled[name] for key, name in wanted.items()}, assign=True)


def _by_original_name(state: Mapping[str, Tensor], original: Original, path: str) -> dict[str, tuple[str, Tensor]]:
    """Original name -> name in the file and tensor; several names of one tensor must agree."""
    given: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if re.search(original.ignored, name):
            continue
        first, value = given.setdefault(original.key(name), (name, tensor))
        if not torch.equal(value, tensor):
            raise MultiflowError(f"'{path}': '{first}' and '{name}' are one tensor in this family but differ here")
    return given


def _some(names: list[str]) -> str:
    first = ", ".join(f"'{name}'" for name in names[:NAMED])
    return first + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors`` or PyTorch file; a pickle that wants to run code is refused.

    A PyTorch file may hold the state dict under ``model`` or ``state_dict``, with or without a ``module.`` prefix.

    Raises:
        MultiflowError: the file is truncated, holds objects other than tensors, or no tensors at all.
    """
    if path.suffix == ".safetensors":
        content: Any = read_foreign(path)
    else:
        content = read_torch(path, called=f"'{path}'", wanted="state dict")
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise MultiflowError(f"'{path}' holds no state dict, neither at its top nor under 'model' or 'state_dict'")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise MultiflowError(f"'{path}': '{name}' is a {type(value).__name__}; a state dict holds tensors only")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def read_config(
    config: Mapping[str, Any] | str | Path | None, presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Read the sizes of a model: a mapping, a JSON or YAML file, or the name of a preset (None = ``base``).

    A file may refer to others by path under keys that end in ``_config``, as the original releases do; these are
    looked for from the working directory, then from the file's folder upwards, and read in place.

    Raises:
        MultiflowError: no such file or preset, or a file that holds no mapping.
    """
    if isinstance(config, Mapping):
        return _read_inner(dict(config), Path())
    name = "base" if config is None else str(config)
    path = Path(name)
    if path.suffix.lower() in CONFIG_SUFFIXES or path.is_file():
        return _read_inner(_read_mapping(path), path.parent)
    if name not in presets:
        raise unknown("config", name, [*presets, "a JSON or YAML file"])
    return dict(presets[name])


def _read_inner(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    places = (Path(), folder, folder / "..", folder / "../..")
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, str):
            found = [place / value for place in places if exists(place / value)]
            config[key] = _read_mapping(found[0] if found else folder / value)
    return config


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    if not isinstance(content, dict):
        raise MultiflowError(f"config '{path}' holds a {type(content).__name__}; it must map names to sizes")
    return content
