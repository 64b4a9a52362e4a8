"""``multiflow shapes``: the synthetic image-text world on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from multiflow.base.steps import step_progress
from multiflow.cli.console import show
from multiflow.cli.settings import Seed
from multiflow.worlds.shapes import write


@dataclass(frozen=True)
class ShapesSettings:
    """How much of the world to write, and in which styles.

    Args:
        out_dir: folder to write, new or empty
        train: pairs in the CC3M shards; Visual Genome and COCO get half as many pictures each
        val: validation pictures, for each of the two styles
        test: test pictures, for each of the two styles
        size: pixels a side
        style: style of the pretraining data: plain or chalk
        downstream_style: style of the COCO and VQA data: plain or chalk
        shard_size: pairs in a tar shard
    """

    out_dir: Positional[str]
    train: Annotated[int, arg(metavar="N")] = 20000
    val: Annotated[int, arg(metavar="N")] = 1000
    test: Annotated[int, arg(metavar="N")] = 1000
    size: Annotated[int, arg(metavar="PIXELS")] = 64
    seed: Seed = 0
    style: Annotated[str, arg(metavar="STYLE")] = "plain"
    downstream_style: Annotated[str, arg(metavar="STYLE")] = "chalk"
    shard_size: Annotated[int, arg(metavar="N")] = 1000


def shapes(settings: ShapesSettings) -> None:
    options = asdict(settings)
    with step_progress() as step:
        folder = write(options.pop("out_dir"), **options, progress=lambda done, total: step("write", done, total))
    show(f"written to {folder}; see {folder / 'README.md'} or: multiflow show data {folder}")
