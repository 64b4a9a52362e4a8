"""Image files of every format and kind of pixel, decoded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multiflow.data.images import decode, load_image, to_pixels
from tests.robust.fuzz import Target


def read(folder: Path) -> Any:
    """Decode the one image in a folder."""
    (path,) = folder.iterdir() if any(folder.iterdir()) else [folder / "gone"]
    image = decode(load_image(str(path), path.name), path.name)
    assert image.mode == "RGB"
    assert np.isfinite(to_pixels([image], 8)).all()
    return image.size


def _write(suffix: str, mode: str, options: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    if mode in ("I;16", "F"):
        grey = levels[:, :, 0].astype(np.uint16) * 257
        image = Image.fromarray(grey if mode == "I;16" else grey.astype(np.float32) / 65535)
    else:
        image = Image.fromarray(levels).convert(mode)
    if options.get("exif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {**options, "exif": exif}
    image.save(folder / f"image.{suffix}", **options)


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("jpg", "RGB", {"exif": True}),
    "jpeg-progressive": ("jpg", "CMYK", {"progressive": True}),
    "png": ("png", "RGB", {"exif": True}),
    "png-palette": ("png", "P", {"transparency": bytes(range(200))}),
    "png-16": ("png", "I;16", {}),
    "png-alpha": ("png", "LA", {}),
    "webp": ("webp", "RGBA", {"lossless": True, "exif": True}),
    "bmp": ("bmp", "RGB", {}),
    "gif": ("gif", "P", {}),
    "tiff": ("tiff", "RGB", {"compression": "tiff_lzw", "exif": True}),
    "tiff-16": ("tiff", "I;16", {"compression": "tiff_deflate"}),
    "tiff-float": ("tiff", "F", {}),
}
TARGETS = [Target(f"image-{name}", partial(_write, *how), read, weight=0.5) for name, how in KINDS.items()]
