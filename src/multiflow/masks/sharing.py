"""Masks from and for the Hugging Face Hub, and which file of a folder holds those at a sparsity."""

from __future__ import annotations

import tempfile
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.hub import fetch, publish
from multiflow.base.types import short
from multiflow.masks.cards import mask_card
from multiflow.masks.files import mask_file, mask_files
from multiflow.masks.masks import Masks

CARD = "README.md"
RUN_FILES = ("mask-*.safetensors", "weights-*.safetensors", "result.json", CARD)
"""Patterns of the files of a pruning, all that is loaded of a repository."""


def find_mask_file(
    source: str | Path, sparsity: float | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """Find the mask file at a sparsity: in a folder, in a repository of the Hub, or the file that was named.

    Raises:
        MultiflowError: there is no such place, it holds no masks, or none at this sparsity: those there are listed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir() and (path.is_absolute() or str(source).count("/") != 1):
        raise MultiflowError(f"there are no masks at '{source}'; give a mask file, the folder of a run, or 'user/name'")
    folder = path if path.is_dir() else fetch(str(source), RUN_FILES, revision, token)
    there = mask_files(folder)
    listed = ", ".join(there)
    if not there:
        raise MultiflowError(f"'{source}' holds no masks (mask-0.75.safetensors, say); give what multiflow prune wrote")
    if sparsity is None and len(there) > 1:
        raise MultiflowError(f"'{source}' holds masks at several sparsities, {listed}; say which one with sparsity=")
    asked = next(iter(there)) if sparsity is None else short(sparsity)
    if asked not in there:
        raise MultiflowError(f"'{source}' holds no masks at sparsity {asked}; there are: {listed}")
    return there[asked]


def push_masks(masks: Masks, repository: str, private: bool, token: str | None, message: str | None) -> str:
    """Upload masks beside a card, see `Masks.push_to_hub`."""
    if masks.settings.get("changes_weights"):
        raise MultiflowError(
            f"masks of '{masks.settings.get('method')}' belong to changed weights, which are not uploaded with them; "
            "upload both with result.push_to_hub"
        )
    asked = float(masks.settings.get("sparsity", masks.sparsity))
    with tempfile.TemporaryDirectory() as folder:
        file = masks.save(Path(folder) / mask_file(asked))
        write_atomically(Path(folder) / CARD, mask_card({asked: masks}, repository, [file.name]))
        return publish(Path(folder), repository, private, token, message or f"Masks at sparsity {short(asked)}")
