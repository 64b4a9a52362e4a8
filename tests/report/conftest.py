from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from PIL import Image

from multiflow.base.types import Layer
from multiflow.report.values import Demo, Example, Find, Pruned

LAYOUT = (
    Layer("vision.layers.0.q", (4, 4), "vision"),
    Layer("vision.layers.0.k", (4, 4), "vision"),
    Layer("vision.layers.1.q", (4, 4), "vision"),
    Layer("text.layer.0.q", (4, 8), "text"),
    Layer("fusion.layer.1.q", (8, 4), "fusion"),
)
HOSTILE = """a <script>alert("1")</script> star & a 'disc'"""


def recall(tr1: float, ir1: float) -> SimpleNamespace:
    return SimpleNamespace(tr1=tr1, tr5=tr1, tr10=tr1, ir1=ir1, ir5=ir1, ir10=ir1)


def hits(tr1: float, ir1: float, scenes: int = 200) -> str:
    """Hits that fit two recalls: the scenes in order, until they are used up."""
    return "".join(str((i < tr1 * scenes / 100) + (i < ir1 * scenes / 100)) for i in range(scenes))


def row(
    method: str, sparsity: float, tr1: float, ir1: float, text: float | None = None, layer: float | None = None
) -> Pruned:
    """One row; ``text`` is the share of zeros of the text modality, ``layer`` that of the first vision layer."""
    layers = {m.name: sparsity for m in LAYOUT}
    layers[LAYOUT[0].name] = sparsity if layer is None else layer
    layers["text.layer.0.q"] = sparsity if text is None else text
    return Pruned(
        method=method,
        sparsity=sparsity,
        achieved=sparsity,
        groups={"vision": sparsity, "text": layers["text.layer.0.q"], "fusion": sparsity},
        layers=layers,
        quality=recall(tr1, ir1),  # type: ignore[arg-type]
        itc=recall(tr1, ir1),  # type: ignore[arg-type]
        hits=hits(tr1, ir1),
        prune_seconds=1.25,
        mask_file=f"masks/{method}/mask-{sparsity:g}.safetensors",
        mask_bytes=2345,
    )


ROWS = (
    row("multiflow", 0.63, 80.0, 82.0),
    row("multiflow", 0.9, 40.0, 36.0),
    row("magnitude", 0.63, 70.0, 74.0),
    row("magnitude", 0.9, 9.0, 7.0, text=0.995, layer=0.9999),
    row("random", 0.63, 1.0, 2.0),
    row("random", 0.9, 0.5, 0.5),
)


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def make_demo() -> Callable[..., Demo]:
    def make(rows: tuple[Pruned, ...] = ROWS, **changes: object) -> Demo:
        finds = (Find("dense", 3, 3), Find("multiflow", 3, 3), Find("magnitude", 7, 3), Find("random", 7, 7))
        values: dict[str, object] = {
            "model": "xvlm-shapes",
            "parameters": 4_321_000,
            "layout": LAYOUT,
            "scenes": 200,
            "shortlist": 16,
            "calibration": 512,
            "dense": recall(92.5, 90.5),
            "dense_itc": recall(90.0, 88.0),
            "rows": rows,
            "shown": 0.9,
            "examples": (Example(3, finds),),
            "captions": {3: HOSTILE, 7: "a blue star"},
            "pictures": {3: png((255, 0, 0)), 7: png((0, 0, 255))},
            "image_size": 8,
            "phases": {"load": 1.0, "calibrate": 2.0, "evaluate": 37.0},
            "settings": {"out": "runs/demo", "sparsity": (0.63, 0.9), "seed": 5},
            "versions": {"multiflow": "0.1.0", "torch": "2.13.0"},
            "command": "multiflow demo --seed 5",
            "files": {"masks/multiflow/mask-0.63.safetensors": 2345, "masks/multiflow/mask-0.9.safetensors": 2345},
        }
        return Demo(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_row() -> Callable[..., Pruned]:
    return row
