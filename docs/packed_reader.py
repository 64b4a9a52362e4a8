"""Reads packed files with numpy alone: ``python packed_reader.py FOLDER/packed.safetensors``.

It stands beside the specification in formats.md and does without this library; bfloat16 comes back as float32.
"""

from __future__ import annotations

import json
import sys
import zlib

import numpy as np

WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1}
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
KINDS |= {"BF16": "<u2", "BOOL": "?"}


def read(path: str) -> dict[str, np.ndarray]:
    """Return name -> array of everything in a packed file but what numpy has no type for."""
    data = np.memmap(path, "u1", "r")
    start = 8 + int(data[:8].view("<u8")[0])
    head = json.loads(data[8:start].tobytes())
    header = json.loads(head.pop("__metadata__")["multiflow"])
    stored = {}
    for name, at in head.items():
        if at["dtype"] in KINDS:
            begin, end = at["data_offsets"]
            found = np.frombuffer(data[start + begin : start + end].tobytes(), KINDS[at["dtype"]])
            found = widened(found) if at["dtype"] == "BF16" else found
            stored[name] = found.astype(header.get("narrowed", {}).get(name, found.dtype)).reshape(at["shape"])
    tensors = {}
    for name, coding in header["codings"].items():
        parts = {part: stored.pop(f"{name}.{part}", None) for part in ("bitmap", "values", "scales")}
        tensors[name] = unpack(coding, lambda part, parts=parts: parts[part].tobytes())
    return stored | tensors


def unpack(coding: dict, part) -> np.ndarray:
    """Return one tensor from its coding and a function that gives the bytes of a part."""
    raw = (lambda name: zlib.decompress(part(name))) if coding["compress"] == "zlib" else part
    shape, values, width = coding["shape"], coding["values"], WIDTH[coding["values"]]
    kept = np.flatnonzero(np.unpackbits(np.frombuffer(raw("bitmap"), "u1"), count=int(np.prod(shape))).view(bool))
    planes = np.frombuffer(raw("values"), "u1").reshape(width, -1)
    bits = np.ascontiguousarray(planes.T).view({"bf16": "<u2", "fp16": "<f2", "fp32": "<f4", "int8": "i1"}[values])
    entries = np.zeros(int(np.prod(shape)), "f2" if values == "fp16" else "f4")
    entries[kept] = (widened(bits) if values == "bf16" else bits).ravel()
    if values == "int8":
        entries = entries.reshape(shape[0], -1) * np.frombuffer(raw("scales"), "<f4")[:, None]
    return entries.reshape(shape)


def widened(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16, given as whole numbers, as float32, whose upper half it is."""
    return (bits.astype("<u4") << 16).view("<f4")


if __name__ == "__main__":
    for name, array in read(sys.argv[1]).items():
        print(f"{name}  {array.shape}  {float((array == 0).mean()):.1%} zeros")
