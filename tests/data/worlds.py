"""Small data sets on disk for the tests of the loaders."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = ["a small big red green blue circle square left right of and two above . , unbelievable"]


def picture(number: int, width: int = 20, height: int = 10) -> np.ndarray:
    """A plain picture whose grey level is its number."""
    return np.full((height, width, 3), number % 256, np.uint8)


def png(number: int, width: int = 20, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number, width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    """The number of a picture."""
    return int(np.asarray(image)[0, 0, 0])


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: range) -> dict[str, bytes]:
    """Members of a shard as img2dataset writes them."""
    members = {}
    for n in numbers:
        key = f"{n:09d}"
        members |= {f"{key}.jpg": png(n), f"{key}.txt": f"picture {n}".encode()}
        members[f"{key}.json"] = json.dumps({"caption": f"picture {n}", "key": key}).encode()
    return members


def write_karpathy(folder: Path, splits: list[str], filepath: str = "val2014") -> Path:
    names = [f"{i}.png" for i in range(len(splits))]
    write_images(folder / filepath, names)
    images = [
        {
            "filepath": filepath,
            "filename": name,
            "split": split,
            "cocoid": i,
            "sentences": [{"raw": f"caption {i} {j}", "tokens": []} for j in range(5)],
        }
        for i, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    return write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_visual_genome(folder: Path, count: int = 4, regions: int = 3) -> Path:
    write_images(folder / "images", [f"{i}.png" for i in range(count)])
    described = [
        {
            "id": i,
            "regions": [
                {"region_id": j, "image_id": i, "x": j, "y": 0, "width": 4, "height": 5, "phrase": f"part {j} of {i}"}
                for j in range(regions)
            ],
        }
        for i in range(count)
    ]
    return write_json(folder / "region_descriptions.json", described)
