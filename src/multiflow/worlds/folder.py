"""From a trained model to the folder that ships: float16 weights, what belongs beside them, and a model card.

The figures on the card are those of the stored weights, read back from the folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from multiflow.base.steps import clock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Saved(Protocol):
    """What writes itself into a folder: a tokenizer, an image processor."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write it."""


def write_folder(
    model: PreTrainedModel,
    beside: Saved,
    folder: Path,
    evaluate: Callable[[Path], dict[str, float]],
    card: Callable[[Mapping[str, float], str], str],
    *,
    leave_out: str | None = None,
) -> dict[str, float]:
    """Write a Hugging Face folder of float16 weights with a model card; return the figures of these weights.

    The folder appears under its name only when it is complete, and replaces an older one.

    Args:
        model: what to store; it is left as it is.
        beside: its tokenizer or image processor.
        folder: where to.
        evaluate: folder -> figures of the model in it.
        card: ``(figures, size of the weights in words)`` -> text of the model card.
        leave_out: pattern of the names of tensors that are not stored.
    """
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    half = deepcopy(model).cpu().half()
    kept = {name: x for name, x in half.state_dict().items() if not (leave_out and re.search(leave_out, name))}
    half.save_pretrained(partial, state_dict=kept)
    beside.save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text())
    config["dtype"] = "float32"  # compute in float32, though stored in float16
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    figures = evaluate(partial)
    megabytes = (partial / "model.safetensors").stat().st_size / 1e6
    size = f"{model.num_parameters():,} parameters, float16 on disk, {megabytes:.1f} MB"
    (partial / "README.md").write_text(card(figures, size))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return figures


def fact_table(facts: Mapping[str, object]) -> str:
    """Write facts as the rows of a Markdown table."""
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())


def trained_on(seconds: float, device: str) -> str:
    """Say how long a training took, on what."""
    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' * (threads > 1)}"
    machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    return f"{clock(seconds)} on {machine}, torch {torch.__version__}"
