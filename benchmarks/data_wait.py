"""How long calibration waits for data: tar shards of 320 px JPEG, read and decoded by background workers.

Two models: X-VLM base at 224 px with random weights (4 batches of 8), where a batch takes seconds, and the bundled
X-VLM of 3.9 M weights at 48 px (40 batches of 32), the hard case: next to it, decoding is most of the work. The share
is the time spent in ``next`` on the batches over the time of the whole calibration; starting the workers and making
the first batch is part of it, and given apart.

    python benchmarks/data_wait.py --json benchmarks/results/data_wait.json
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from base_models import machine
from PIL import Image
from rich.console import Console
from rich.table import Table

import multiflow as mf
from multiflow.data import Batches, Inputs, build_word_tokenizer, load_tokenizer, open_data
from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining

WORDS = ["a", "an", "the", "man", "woman", "dog", "small", "red", "old", "street", "with", "on", "of", "two", "next"]
WIDTH, HEIGHT = 320, 240
QUALITY = 95  # as img2dataset encodes


class Timed:
    """Batches that note how long each ``next`` took, in seconds."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.waits: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        begun = time.perf_counter()
        for batch in self.batches:
            self.waits.append(time.perf_counter() - begun)
            yield batch
            begun = time.perf_counter()


def jpeg(rng: np.random.Generator) -> bytes:
    """A picture with the detail of a photograph: noise at every scale, about 40 kB."""
    pixels = sum(
        weight
        * np.asarray(
            Image.fromarray(rng.integers(0, 256, (HEIGHT // step, WIDTH // step, 3), np.uint8)).resize((WIDTH, HEIGHT)),
            np.float32,
        )
        for step, weight in ((40, 0.5), (8, 0.3), (2, 0.2))
    )
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_shards(folder: Path, pairs: int, shard_size: int = 500) -> int:
    """Write shards as img2dataset does; returns the mean size of an image in bytes."""
    rng, written = np.random.default_rng(0), 0
    for first in range(0, pairs, shard_size):
        with tarfile.open(folder / f"{first // shard_size:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, min(first + shard_size, pairs)):
                image, caption = jpeg(rng), " ".join(rng.choice(WORDS, 10)).encode()
                written += len(image)
                for suffix, content in (("jpg", image), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return written // pairs


def measure(model: Any, batches: Batches) -> dict[str, Any]:
    """Calibrate once to warm up, on one batch, and once with the clock running."""
    mf.calibrate(model, replace(batches, limit=1, workers=0))
    timed = Timed(batches)
    begun = time.perf_counter()
    mf.calibrate(model, timed)
    whole = time.perf_counter() - begun
    images = len(timed.waits) * batches.batch_size
    begun = time.perf_counter()
    for _ in replace(batches, limit=min(len(batches), 8), workers=0):
        pass
    alone = time.perf_counter() - begun
    return {
        "batches": len(timed.waits),
        "batch_size": batches.batch_size,
        "workers": batches.workers,
        "calibration_s": whole,
        "waited_s": sum(timed.waits),
        "first_wait_s": timed.waits[0],
        "wait_share": sum(timed.waits) / whole,
        "wait_share_after_first": sum(timed.waits[1:]) / (whole - timed.waits[0]),
        "images_per_s": images / whole,
        "images_per_s_of_one_process_without_model": min(len(batches), 8) * batches.batch_size / alone,
    }


def base(folder: Path) -> tuple[Any, Batches]:
    tokenizer = build_word_tokenizer(WORDS)
    inputs = Inputs(tokenizer, 224, 16, mlm=False)
    return XVLMForPretraining(XVLMConfig()).eval(), Batches(open_data(folder), inputs, batch_size=8, limit=4)


def bundled(folder: Path) -> tuple[Any, Batches]:
    place = Path(str(files("multiflow") / "assets" / "xvlm-shapes"))
    model = mf.load_model(place)
    config: Any = model.config
    inputs = Inputs(load_tokenizer(place), config.image_size, config.patch_size, mlm=False)
    return model, Batches(open_data(folder), inputs, batch_size=32, limit=40)


MODELS = {"xvlm-base": base, "xvlm-shapes": bundled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=1280)
    parser.add_argument("--batches", type=int, help="batches at most, of each model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="put into the JSON, such as what else ran")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "note": args.note, "models": {}}
    table = Table("model", "batches", "waited", "of", "share (limit 10 %)", "after the first batch", "images/s")
    with TemporaryDirectory() as name:
        found["jpeg_bytes"] = write_shards(Path(name), args.pairs)
        for title in args.models:
            model, batches = MODELS[title](Path(name))
            limit = min(batches.limit or 1, args.batches or 3000)
            got = measure(model, replace(batches, limit=limit, workers=args.workers))
            found["models"][title] = got
            shares = (f"{got[key]:.1%}" for key in ("wait_share", "wait_share_after_first"))
            times = (f"{got[key]:.2f} s" for key in ("waited_s", "calibration_s"))
            table.add_row(
                title, f"{got['batches']} x {got['batch_size']}", *times, *shares, f"{got['images_per_s']:.1f}"
            )
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
