"""Training checkpoints: one folder per step, complete or absent.

A checkpoint ``step-00000120/`` holds ``model.safetensors``, ``optimizer.pt`` (read with ``weights_only=True``) and
``state.json``, with checksums of all three. It is written under a temporary name and renamed, so a kill at any moment
leaves the previous one. Of several processes the first one writes, and all read; of a model that is split among them it
writes the whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from multiflow.base.artifacts import describe_file, is_described, read_facts, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import raise_shortage
from multiflow.base.parallel import exchange, rank
from multiflow.training.processes import is_split

FILES = ("model.safetensors", "optimizer.pt")
"""Beside ``state.json``, which holds their checksums and its own."""
DAMAGED = (
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError),
    *(UnpicklingError, SafetensorError, MultiflowError),
)


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("step-*"))


def save_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint for ``state["step"]`` and delete all but the latest ``keep``; every process calls it.

    Raises:
        MultiflowError: the folder cannot be written.
    """
    final = run_dir / f"step-{state['step']:08d}"
    split = _split_states(model, optimizer) if is_split(model) else None
    if rank() == 0:
        _write(final, model, optimizer, state, split)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    exchange("checkpoint")
    return final


def _write(
    final: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    split: tuple[dict[str, Any], dict[str, Any]] | None,
) -> None:
    partial = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if split is None:
            save_model(model, str(partial / "model.safetensors"))
        else:
            save_file({name: x.clone().contiguous() for name, x in split[0].items()}, partial / "model.safetensors")
        torch.save(optimizer.state_dict() if split is None else split[1], partial / "optimizer.pt")
        write_facts(partial / "state.json", {**state, "files": {name: describe_file(partial / name) for name in FILES}})
        os.replace(partial, final)
    except OSError as error:
        raise MultiflowError(
            f"cannot write the checkpoint {final}: {error.strerror}; free or choose another"
        ) from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Read weights, and the optimizer's state if one is given, in place; return what ``state.json`` holds.

    Raises:
        MultiflowError: the checkpoint is incomplete, altered, or of another model.
    """
    try:
        state = read_facts(path / "state.json", "state of a training run", "go on from the one before")
        if type(state.get("step")) is not int:
            raise ValueError("state.json says no step")
        if vouched := state.pop("files", None):  # checkpoints of older versions have none
            for name in FILES:
                if not is_described(path / name, str(dict(vouched).get(name))):
                    raise ValueError(f"{name} was altered: its checksum does not fit")
        if is_split(model):
            _load_split(path, model, optimizer)
        else:
            load_model(model, str(path / "model.safetensors"))
        if optimizer is not None and not is_split(model):
            optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"))
    except DAMAGED as error:
        raise_shortage(error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MultiflowError(
            f"checkpoint {path} is damaged or of another model ({reason}); delete it to go on from the one before"
        ) from error
    return state


def _split_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _load_split(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    weights: dict[str, Any] = load_file(path / "model.safetensors")
    set_model_state_dict(model, weights, options=options)
    if optimizer is not None:
        held = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")
        set_optimizer_state_dict(model, optimizer, held, options=options)
