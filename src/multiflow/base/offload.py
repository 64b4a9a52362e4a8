"""Weights that accelerate keeps elsewhere: on a disk, or in CPU memory for a model that runs on another device.

A model that was dispatched (``device_map=``) has parameters on the meta device, which have a shape and no values; the
hooks of its modules bring the values for the time of a forward. What the library needs of a weight between forwards it
reads through the same hooks, one weight at a time, and keeps no longer than it needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.guards import check_values, raise_shortage

READER = "accelerate.utils.offload"
"""The module that reads weights from the disk."""


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps any weight of a model elsewhere."""
    return any(getattr(hook, "offload", False) for module in model.modules() for hook in _hooks(module))


def stored_value(modules: Mapping[str, nn.Module], path: str, name: str = "weight") -> Tensor | None:
    """Read a parameter that is on the meta device through the hook that would bring it; None where there is no hook.

    Args:
        modules: all of the model, by path.
        path: of the module that has the parameter.
        name: of the parameter there.

    Returns:
        The values on the CPU, in the dtype in which the model computes.

    Raises:
        MultiflowError: they lay on the disk, and are gone or cut by now.
    """
    parts = [*path.split("."), name] if path else [name]
    for at in range(len(parts) - 1, -1, -1):
        for hook in _hooks(modules.get(".".join(parts[:at]))):
            if (values := getattr(hook, "weights_map", None)) is not None:
                try:
                    with naming_lost(modules[""]):
                        return values[".".join(parts[at:])]
                except KeyError:
                    continue
    return None


def check_readable(modules: Mapping[str, nn.Module], paths: Mapping[str, Tensor]) -> None:
    """Refuse weights whose values are nowhere: on the meta device, and no hook brings them.

    Args:
        modules: all of the model, by path.
        paths: path of a layer -> its weight.
    """
    check_values({path: weight for path, weight in paths.items() if weight.is_meta and not _is_brought(modules, path)})


def working_device(modules: Mapping[str, nn.Module], path: str, weight: Tensor) -> torch.device:
    """Return where a layer computes: the device of its weight, or the one its hook brings the weight to."""
    if not weight.is_meta:
        return weight.device
    parts = path.split(".")
    for at in range(len(parts), -1, -1):
        for hook in _hooks(modules.get(".".join(parts[:at]))):
            if getattr(hook, "offload", False) and hook.execution_device is not None:
                place = hook.execution_device
                return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return torch.device("cpu")


def input_device(model: nn.Module) -> torch.device:
    """Return where a model takes its inputs: the device of its first weight, or where a hook brings that."""
    path, weight = next(iter(model.named_parameters()), ("", torch.empty(0)))
    return working_device(dict(model.named_modules()), path.rpartition(".")[0], weight)


def weight_files(model: nn.Module) -> list[Path]:
    """List the files from which hooks bring the weights of a model."""
    return sorted({file for file, _ in weight_places(model).values()})


def weight_places(model: nn.Module) -> dict[str, tuple[Path, str]]:
    """Return name of a parameter -> the safetensors file from which a hook brings it, and its name there."""
    found: dict[str, tuple[Path, str]] = {}
    for module in model.modules():
        for hook in _hooks(module):
            values: Any = getattr(hook, "weights_map", None)
            while hasattr(values, "dataset"):
                values = values.dataset
            for name, entry in (getattr(values, "index", None) or {}).items():
                if isinstance(entry, Mapping) and entry.get("safetensors_file"):
                    found[name] = Path(entry["safetensors_file"]), entry.get("weight_name", name)
    return found


@contextmanager
def naming_lost(model: nn.Module) -> Iterator[None]:
    """Turn what is raised of files of offloaded weights that are gone or cut by now into a sentence."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise_shortage(error)
        if isinstance(error, MultiflowError) or not (is_offloaded(model) and _comes_of_reading(error)):
            raise
        raise MultiflowError(
            f"the weights of this {type(model).__name__} that lie on the disk cannot be read any more "
            f"({' '.join(str(error).split())[:200]}); put the files back as they were, or load the model again"
        ) from error


def _comes_of_reading(error: BaseException) -> bool:
    """Whether an error was raised where accelerate reads a weight."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__") == READER:
            return True
        frame = frame.tb_next
    return False


@contextmanager
def naming_missing(model: nn.Module) -> Iterator[None]:
    """Turn what a forward of an offloaded model raises of weights without values, or that are lost, into a sentence."""
    try:
        with naming_lost(model):
            yield
    except (RuntimeError, NotImplementedError, KeyError) as error:
        lost = str(error).strip("'") in dict(model.named_parameters()) if isinstance(error, KeyError) else False
        if not (lost or "meta" in str(error)) or not is_offloaded(model):
            raise
        said = " ".join(str(error).split())[:120]
        raise MultiflowError(
            f"a {type(model).__name__} cannot run with these weights offloaded ({said}): its code uses some outside of "
            "the modules to which accelerate brings them; keep those parts in memory with device_map=, or prune its "
            "folder with multiflow prune --stream"
        ) from error


@contextmanager
def without_mapping() -> Iterator[None]:
    """Let transformers and accelerate read weights out of their files, one at a time, without mapping whole files.

    What is mapped counts as address space, so that a process under ``ulimit -v`` could open no model larger than that.
    """
    homes = [sys.modules[name] for name in ("transformers.modeling_utils", READER) if name in sys.modules]
    before = [getattr(home, "safe_open", None) for home in homes]
    try:
        for home, own in zip(homes, before, strict=True):
            if own is not None:
                home.safe_open = partial(_opened, own)  # type: ignore[attr-defined]
        yield
    finally:
        for home, own in zip(homes, before, strict=True):
            if own is not None:
                home.safe_open = own  # type: ignore[attr-defined]


def _opened(own: Any, *args: Any, **options: Any) -> Any:
    return own(*args, **{**options, "backend": "pread"})


def _is_brought(modules: Mapping[str, nn.Module], path: str) -> bool:
    parts = path.split(".")
    above = (modules.get(".".join(parts[:at])) for at in range(len(parts), -1, -1))
    return any(getattr(hook, "weights_map", None) is not None for module in above for hook in _hooks(module))


def _hooks(module: nn.Module | None) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
