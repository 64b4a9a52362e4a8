"""Reads packed files with numpy and safetensors alone: ``python packed_reader.py FOLDER/packed.safetensors``.

It stands beside the specification in formats.md and does without this library; bfloat16 comes back as float32.
"""

from __future__ import annotations

import json
import sys
import zlib

import numpy as np
from safetensors import safe_open

WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}


def read(path: str) -> dict[str, np.ndarray]:
    """Return name -> array of everything in a packed file but what numpy has no type for."""
    with safe_open(path, "numpy") as file:
        codings = json.loads(file.metadata()["multiflow"])["codings"]
        parts = {part for name in codings for part in (f"{name}.bitmap", f"{name}.values", f"{name}.scales")}
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            if name not in parts:
                tensors[name] = file.get_tensor(name)
        for name, coding in codings.items():
            tensors[name] = unpack(coding, lambda part, name=name: file.get_tensor(f"{name}.{part}").tobytes())
    return tensors


def unpack(coding: dict, part) -> np.ndarray:
    """Return one tensor from its coding and a function that gives the bytes of a part."""
    raw = (lambda name: zlib.decompress(part(name))) if coding["compress"] == "zlib" else part
    shape, values, width = coding["shape"], coding["values"], WIDTH[coding["values"]]
    size = int(np.prod(shape))
    kept = np.flatnonzero(np.unpackbits(np.frombuffer(raw("bitmap"), "u1"), count=size).view(bool))
    planes = np.frombuffer(raw("values"), "u1").reshape(width, -1)
    bits = np.ascontiguousarray(planes.T).view({1: "i1", 2: "<u2", 4: "<u4"}[width]).ravel()
    if values == "int8":
        entries = np.zeros(size, "f4")
        entries[kept] = bits
        return (entries.reshape(shape[0], -1) * np.frombuffer(raw("scales"), "<f4")[:, None]).reshape(shape)
    entries = np.zeros(size, "<u4" if values == "bf16" else bits.dtype)
    entries[kept] = bits.astype("<u4") << 16 if values == "bf16" else bits  # bfloat16: the upper half of a float32
    return entries.view({"bf16": "<f4", "fp16": "<f2", "fp32": "<f4"}[values]).reshape(shape)


if __name__ == "__main__":
    for name, array in read(sys.argv[1]).items():
        print(f"{name}  {array.shape}  {float((array == 0).mean()):.1%} zeros")
