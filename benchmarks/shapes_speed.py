"""Scenes a second of the Shapes world on one core: sampling, rendering, captions, and the three together.

python benchmarks/shapes_speed.py [--scenes 2000] [--size 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from multiflow.worlds.shapes import STYLES, describe, make_scenes, render


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how many of ``count`` items a second the best of three runs of ``work`` does, by processor time."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return count / min(seconds)


def measure(style: str, split: str, count: int, size: int) -> dict[str, float]:
    scenes = make_scenes(split, count, style=style)
    render(scenes[0], size)  # fills the noise banks

    def everything() -> None:
        for scene in make_scenes(split, count, style=style):
            render(scene, size)
            describe(scene)

    return {
        "sample": rate(count, lambda: make_scenes(split, count, style=style)),
        "render": rate(count, lambda: [render(scene, size) for scene in scenes]),
        "describe": rate(count, lambda: [describe(scene) for scene in scenes]),
        "whole": rate(count, everything),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    print(f"scenes a second, one core, {options.size} px, five captions a scene ({platform.machine()})")
    print(f"{'':14}{'sample':>10}{'render':>10}{'describe':>10}{'whole':>10}")
    for style in STYLES:
        for split in ("train", "test"):
            row = table[f"{style}/{split}"] = measure(style, split, options.scenes, options.size)
            print(f"{style + ' ' + split:14}" + "".join(f"{value:10,.0f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps({"scenes": options.scenes, "size": options.size, "rates": table}, indent=2))


if __name__ == "__main__":
    main()
