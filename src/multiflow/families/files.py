"""Reading original release files: tensors without running code, and the configs beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multiflow.base.artifacts import read_torch
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.reading import read_json, read_yaml

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors`` or PyTorch file; a pickle that wants to run code is refused.

    A PyTorch file may hold the state dict under ``model`` or ``state_dict``, with or without a ``module.`` prefix.

    Raises:
        MultiflowError: the file is truncated, holds objects other than tensors, or no tensors at all.
    """
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MultiflowError(f"'{path}' is not a complete safetensors file ({error}); copy it again") from error


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
            found = [place / value for place in places if (place / value).is_file()]
            config[key] = _read_mapping(found[0] if found else folder / value)
    return config


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    if not isinstance(content, dict):
        raise MultiflowError(f"config '{path}' holds a {type(content).__name__}; it must map names to sizes")
    return content
