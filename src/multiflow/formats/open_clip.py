"""A CLIP of transformers as a folder of open_clip: ``open_clip.create_model_and_transforms("local-dir:FOLDER")``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from multiflow.base.files import copy_files
from multiflow.data.images import CLIP_MEAN, CLIP_STD, read_statistics
from multiflow.families.open_clip.names import model_config, of_open_clip

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
PIXELS = "preprocessor_config.json"


def write_open_clip(model: Any, state: Mapping[str, Tensor], folder: Path, beside: Sequence[Path]) -> None:
    """Write weights, config and tokenizer files into a folder.

    Args:
        model: a ``CLIPModel``.
        state: its weights, zeros included.
        folder: an empty one.
        beside: files of the model's folder to copy; the processor's says how pixels are normalised.

    Raises:
        MultiflowError: the model is no CLIP.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in of_open_clip(model, state).items()}
    statistics: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD}
    for file in beside:
        if file.name == PIXELS:
            statistics |= read_statistics(file)
    copy_files(beside, folder)
    config = {"model_cfg": model_config(model.config), "preprocess_cfg": statistics}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
