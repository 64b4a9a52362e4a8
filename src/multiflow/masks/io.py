"""Mask files of our own: safetensors, one bit a weight.

Each layer is one uint8 tensor of packed bits under its name. The metadata hold, as JSON under ``multiflow``: the
format version, the library version, the layers (name, shape, group, stream, aliases), the hash of each weight, the
settings, the layers' names in the original release where they are known, and a checksum of all of these and the packed
bytes, so that an altered file is found out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from multiflow.base.errors import MultiflowError
from multiflow.base.files import plain, write_atomically
from multiflow.base.types import Layer, Layout
from multiflow.masks.masks import Masks

FORMAT = 1


def save(masks: Masks, path: Path) -> Path:
    """Write masks to a file: first under a temporary name, then renamed, so that no half file is left."""
    header = {
        "format": FORMAT,
        "layers": [asdict(layer) for layer in masks.layout.layers],
        "weights": dict(masks.weights),
        "settings": json.loads(json.dumps(dict(masks.settings), default=plain)),
        "names": dict(masks.names),
    }
    header["checksum"] = _checksum(header, masks.packed)
    data = to_bytes({name: masks.packed[name] for name in masks}, metadata={"multiflow": json.dumps(header)})
    return write_atomically(path, data)


def load(path: Path) -> Masks:
    """Read masks from a file, checking every size and the checksum."""
    if not path.is_file():
        raise MultiflowError(
            f"no mask file at '{path}'; expected a file that masks.save wrote, or one of the original release"
        )
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise MultiflowError(f"'{path}' is no mask file, or a truncated one ({error}); make the masks again") from error
    if "multiflow" not in metadata:
        raise MultiflowError(f"'{path}' is a safetensors file without masks; expected one that masks.save wrote")
    try:
        header = json.loads(metadata["multiflow"])
        if header["format"] != FORMAT:
            raise MultiflowError(
                f"mask file '{path}' has format {header['format']}, this version reads format {FORMAT}; "
                "update multiflow"
            )
        layout = Layout(tuple(_layer(fields) for fields in header["layers"]))
        weights, settings, names = header["weights"], header["settings"], header.get("names", {})
        ok = header["checksum"] == _checksum(header, packed)
        ok = ok and all(packed[layer.name].shape == (-(-layer.size // 8),) for layer in layout.layers)
    except (KeyError, TypeError, ValueError) as error:
        raise MultiflowError(
            f"the header of mask file '{path}' is damaged ({error!r}); make the masks again"
        ) from error
    if not ok:
        raise MultiflowError(f"mask file '{path}' was altered: its checksum does not fit; make the masks again")
    return Masks(layout, {name: packed[name] for name in layout}, weights, settings, names)


def _layer(fields: Mapping[str, Any]) -> Layer:
    rows, columns = fields["shape"]
    return Layer(fields["name"], (rows, columns), fields["group"], fields["stream"], tuple(fields["aliases"]))


def _checksum(header: Mapping[str, Any], packed: Mapping[str, np.ndarray]) -> str:
    """Hash the header but for the checksum itself, then kind and bits of all layers in layout order."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode(), usedforsecurity=False)
    for layer in header["layers"]:
        bits = packed[layer["name"]]
        digest.update(f"{bits.dtype} {bits.shape}".encode())
        digest.update(np.ascontiguousarray(bits).data)
    return digest.hexdigest()
