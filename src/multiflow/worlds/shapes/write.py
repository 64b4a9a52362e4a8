"""Shapes on disk: one folder with pretraining and downstream data in the layouts of the real data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

from multiflow.base.errors import MultiflowError, unknown
from multiflow.worlds.shapes.layouts import write_cc3m, write_coco, write_json, write_visual_genome, write_vqa
from multiflow.worlds.shapes.render import MIN_SIZE
from multiflow.worlds.shapes.sample import make_scenes
from multiflow.worlds.shapes.scene import STYLES, Scene

_README = """# Shapes

A synthetic image-text world, written by multiflow {version}: scenes of one to four objects, {size} x {size} pixels.

    {command}

| folder | layout | style | holds |
|---|---|---|---|
| `pretrain/cc3m` | CC3M shards of img2dataset | {style} | {train} training scenes with a caption each |
| `pretrain/vg` | Visual Genome regions | {style} | {half} other training scenes, a box and a phrase for every object |
| `coco_plain` | COCO, Karpathy's JSON | {style} | {val} val and {test} test scenes, 5 captions each |
| `coco`, `images` | COCO, Karpathy's JSON | {downstream_style} | {half} train, {val} val, {test} test scenes |
| `vqa`, `images` | VQA v2 | {downstream_style} | 5 questions on every picture of `coco`, 10 answers each |

No scene of val or test (objects with attributes and rough places) is in any training part. The same command writes the
same bytes with the same versions of multiflow and Pillow. `dataset.json` says the same to programs.
"""


@dataclass(frozen=True)
class _Settings:
    train: int
    val: int
    test: int
    size: int
    seed: int
    style: str
    downstream_style: str
    shard_size: int

    def __post_init__(self) -> None:
        lowest = {"train": 2, "val": 1, "test": 1, "size": MIN_SIZE, "seed": 0, "shard_size": 1}
        for name, low in lowest.items():
            given, high = getattr(self, name), 10_000 if name == "shard_size" else None
            if given < low or (high and given > high):
                expected = f"from {low} to {high}" if high else f"of at least {low}"
                raise MultiflowError(
                    f"{name}={given} was given, a whole number {expected} was expected; "
                    f"pass {name}={low if given < low else high}"
                )
        for given in (self.style, self.downstream_style):
            if given not in STYLES:
                raise unknown("style", given, STYLES)


def write(
    out_dir: str | os.PathLike[str],
    *,
    train: int = 20000,
    val: int = 1000,
    test: int = 1000,
    size: int = 64,
    seed: int = 0,
    style: str = "plain",
    downstream_style: str = "chalk",
    shard_size: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the Shapes data sets to a new or empty folder and return it; about 1,000 pictures a second.

    Args:
        out_dir: the folder; it appears complete or not at all.
        train: pairs in the CC3M shards; Visual Genome and COCO get half as many pictures each.
        val: validation pictures, for each of the two styles.
        test: test pictures, for each of the two styles.
        size: pixels a side.
        seed: the same seed and settings give the same bytes.
        style: style of the pretraining data.
        downstream_style: style of the COCO and VQA data.
        shard_size: pairs in a tar shard, at most 10,000.
        progress: called as ``progress(pictures done, pictures in all)``.

    Raises:
        MultiflowError: a value out of range, an unknown style, a folder that holds something or cannot be written.
    """
    settings = _Settings(train, val, test, size, seed, style, downstream_style, shard_size)
    out = Path(out_dir)
    try:
        if out.exists() and not out.is_dir():
            raise MultiflowError(f"the output folder '{out}' is a file; choose a new folder")
        if out.exists() and any(out.iterdir()):
            raise MultiflowError(f"the output folder '{out}' already holds files; choose a new folder or empty it")
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            temporary.chmod(0o755)
            _write_all(temporary, settings, progress or (lambda done, total: None))
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MultiflowError(f"cannot write Shapes to '{out}': {reason}; choose a folder you can write to") from error
    return out


def _write_all(root: Path, settings: _Settings, progress: Callable[[int, int], None]) -> None:
    s, half = settings, settings.train // 2
    done, total = 0, s.train + 2 * half + 2 * (s.val + s.test)

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def scenes(style: str, **counts: int) -> dict[str, list[Scene]]:
        return {split: make_scenes(split, count, seed=s.seed, style=style) for split, count in counts.items()}

    pretrain = root / "pretrain"
    seen = make_scenes("train", s.train + half, seed=s.seed, style=s.style)
    write_cc3m(pretrain / "cc3m", seen[: s.train], s.size, s.shard_size, tick)
    write_visual_genome(pretrain / "vg", seen[s.train :], s.size, tick)
    held_out = scenes(s.style, val=s.val, test=s.test)
    write_coco(
        root / "coco_plain", root / "coco_plain", held_out, s.size, tick
    )  # not in pretrain: nothing trains on it
    downstream = scenes(s.downstream_style, train=half, val=s.val, test=s.test)
    write_coco(root / "coco", root / "images", downstream, s.size, tick)
    write_vqa(root / "vqa", downstream)

    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(s).items())
    about = {"name": "shapes", "version": version("multiflow"), "command": f"multiflow shapes OUT_DIR {options}"}
    write_json(root / "dataset.json", about | asdict(s) | {"pictures": total}, indent=2)
    (root / "README.md").write_text(_README.format(**about, **asdict(s), half=half), encoding="utf-8")
