"""What zeros bring on these models: bytes as they are shipped, and milliseconds of every form, side by side.

``python -m benchmarks.real.speeds MODEL`` adds a model to ``benchmarks/results/real_speed.json``; without a model it
prints the table of what is there. Zeros are by magnitude, the same share in every layer: where they are decides
neither bytes nor time. Files hold everything in bfloat16, the dense model is in float32. Nothing else may run
meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import multiflow as mf
from benchmarks.real.fetch import default_cache
from benchmarks.real.grid import open_worlds, read_real_grid
from multiflow.base.files import write_atomically
from multiflow.formats.figures import WHOLE

OUT = Path(__file__).parent.parent / "results" / "real_speed.json"
SPARSITIES = (0.5, 0.75, 0.9)
DENSE = ("dense fp32", "dense int8")
VALUES = ("bf16", "int8")
SAMPLES = (1, 8)
SECONDS = 36.0  # of measuring


def measure(name: str, cache: Path) -> dict[str, Any]:
    """Measure a model of the grid, dense and at every sparsity; returns form -> bytes of its files and seconds."""
    torch.set_num_threads(1)
    world = open_worlds(read_real_grid(), cache, [name])[name]()
    batch = world.batches(0)[0]
    masks = mf.prune(world.model, "magnitude-layer", SPARSITIES, adapter=world.adapter, progress=False).masks
    sparse = {
        f"sparse {values}, {sparsity:.0%} zeros": mf.sparse_runtime(world.model, masks[sparsity], values=values)
        for sparsity in SPARSITIES
        for values in VALUES
    }
    how = {"batch": batch, "samples": SAMPLES, "forms": DENSE, "adapter": world.adapter, "files": False, "steps": False}
    table = mf.speed(world.model, others=sparse, seconds=SECONDS, **how)
    half = deepcopy(world.model).to(torch.bfloat16)
    sizes = {DENSE[0]: sum(of.numel() * of.element_size() for of in world.model.parameters())}
    for form, (sparsity, values) in zip(sparse, product(SPARSITIES, VALUES), strict=True):
        sizes[form] = _size(half, mf.prune(half, "magnitude-layer", sparsity, adapter=world.adapter), sparsity, values)
    forms = {
        form: {
            "file": sizes.get(form),
            "seconds": {f"{c.part} x {c.samples}": c.timing.median for c in table.cells if c.form == form},
        }
        for form in table.forms
    }
    return {"machine": dict(table.machine), "forms": forms}


def _size(model: Any, result: mf.Result, sparsity: float, values: str) -> int:
    with TemporaryDirectory() as place:
        out = mf.export(model, result.masks[sparsity], Path(place) / "packed", values=values)
        return sum(file.stat().st_size for file in out.rglob("*.safetensors"))


def speed_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was measured as Markdown: megabytes, and milliseconds of the whole model."""
    lines = []
    for model, said in results.items():
        forms = said["forms"]
        wanted = [f"{WHOLE} x {count}" for count in SAMPLES]
        columns = [name for name in wanted if any(name in of["seconds"] for of in forms.values())]
        lines += [
            f"| {model} | MB | {' | '.join(f'{name}, ms' for name in columns)} |",
            f"|---|{'---:|' * (1 + len(columns))}",
        ]
        for form, of in forms.items():
            times = [f"{1000 * of['seconds'][name]:.3g}" if name in of["seconds"] else "-" for name in columns]
            size = "-" if of["file"] is None else f"{of['file'] / 1e6:.1f}"
            lines.append(f"| {form} | {size} | {' | '.join(times)} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure the models that are named, and print the table."""
    there = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    for name in arguments:
        there[name] = measure(name, default_cache())
        write_atomically(OUT, json.dumps(there, indent=1) + "\n")
    print(speed_table(there))


if __name__ == "__main__":
    main(sys.argv[1:])
