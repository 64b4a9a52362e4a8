"""Training checkpoints: one folder per step, complete or absent.

A checkpoint ``step-00000120/`` holds ``model.safetensors``, ``optimizer.pt`` (read with ``weights_only=True``) and
``state.json``. It is written under a temporary name and renamed, so a kill at any moment leaves the previous one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from multiflow.errors import MultiflowError


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(run_dir.glob("step-*"))


def save_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint for ``state["step"]`` and delete all but the latest ``keep``.

    Raises:
        MultiflowError: the folder cannot be written.
    """
    final = run_dir / f"step-{state['step']:08d}"
    partial = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(model, str(partial / "model.safetensors"))
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        os.replace(partial, final)
    except OSError as error:
        raise MultiflowError(
            f"cannot write the checkpoint {final}: {error.strerror}; free or choose another"
        ) from error
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Read weights, and the optimizer's state if one is given, in place; return what ``state.json`` holds.

    Raises:
        MultiflowError: the checkpoint is incomplete, altered, or of another model.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        load_model(model, str(path / "model.safetensors"))
        if optimizer is not None:
            optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MultiflowError(
            f"checkpoint {path} is damaged or of another model ({reason}); delete it to go on from the one before"
        ) from error
    return state
