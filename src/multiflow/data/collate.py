"""From images and texts to batches: dicts of tensors with the names that X-VLM's forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import Box
from multiflow.data.images import CLIP_MEAN, CLIP_STD, Picture, decode, size_of, to_pixels
from multiflow.data.masking import mask_tokens
from multiflow.data.seeds import Stream
from multiflow.data.text import encode_texts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)


def collate_pairs(
    images: Sequence[Picture] | np.ndarray,
    captions: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    image_size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    seed: int = 0,
    position: int = 0,
    mlm: bool = True,
    max_length: int = 40,
    end: bool = False,
) -> dict[str, torch.Tensor]:
    """Return a batch of image-text pairs.

    Args:
        images: Pillow images, uint8 arrays (H, W, 3), or the bytes of image files.
        captions: one text an image.
        tokenizer: a tokenizer with [CLS], [PAD] and (for MLM) [MASK].
        image_size: height and width of the model's input in pixels.
        mean: channel means for values in [0, 1].
        std: channel standard deviations.
        seed: seed of the run; with `position` it decides which tokens are hidden.
        position: number of the batch in the run.
        mlm: whether to add the ``mlm_*`` entries.
        max_length: tokens at most, [CLS] and [SEP] counted.
        end: whether each text ends with [SEP], as BLIP's do.

    Returns:
        ``pixel_values`` (B, 3, H, H) float32; ``input_ids``, ``attention_mask``, ``mlm_input_ids`` (B, L) int64;
        ``mlm_positions``, ``mlm_labels`` (B, K) int64.

    >>> batch = collate_pairs([image], ["a red square"], tokenizer=tokenizer, image_size=48)   # doctest: +SKIP
    """
    if len(images) != len(captions):
        raise MultiflowError(f"{len(images)} images and {len(captions)} captions were given; expected one caption each")
    if not len(images):
        raise MultiflowError("an empty batch was given; expected at least one image with its caption")
    batch = {"pixel_values": to_pixels(images, image_size, mean, std)}
    batch |= _texts(captions, tokenizer, seed, position, Stream.MLM, mlm, max_length, end)
    return _tensors(batch)


def collate_regions(
    images: Sequence[Picture] | np.ndarray,
    regions: Sequence[Sequence[tuple[str, Box | None]]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    image_size: int,
    patch_size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    seed: int = 0,
    position: int = 0,
    mlm: bool = True,
    max_length: int = 40,
    end: bool = False,
) -> dict[str, torch.Tensor]:
    """Return a region batch: T texts over fewer images, each with the patches and the box it describes.

    Args:
        images: as in `collate_pairs`.
        regions: for each image its (caption, box) pairs, at least one; the box is (x, y, width, height) in pixels of
            the image as given, or None when the text describes the whole image. Boxes are clipped to the image.
        patch_size: height and width of a patch of the model in pixels.
        tokenizer, image_size, mean, std, seed, position, mlm, max_length, end: as in `collate_pairs`.

    Returns:
        ``pixel_values`` (B, 3, H, H); ``image_index`` (T,) int64; ``input_ids``, ``attention_mask`` and ``mlm_*`` over
        the T texts; ``patch_mask`` (T, 1 + patches) int64, 1 for [CLS] and for each patch that the box touches;
        ``boxes`` (T, 4) float32: centre x, centre y, width, height in 0..1 of the image; ``is_image`` (T,) int64.
    """
    if len(images) != len(regions):
        raise MultiflowError(f"{len(images)} images and regions of {len(regions)} were given; expected one list each")
    bare = next((i for i, listed in enumerate(regions) if not len(listed)), None)
    if not len(images) or bare is not None:
        what = "no image" if bare is None else f"no region for image {bare}"
        raise MultiflowError(f"the region batch has {what}; expected at least one (caption, box) for every image")
    if patch_size < 1 or image_size % patch_size:
        raise MultiflowError(f"patches of {patch_size} pixels do not tile an image of {image_size}; choose a divisor")
    pictures = [decode(image) for image in images]
    flat = [(i, caption, box) for i, listed in enumerate(regions) for caption, box in listed]
    boxes = np.array([_relative_box(box, size_of(pictures[i])) for i, _, box in flat], np.float64)
    batch = {
        "pixel_values": to_pixels(pictures, image_size, mean, std),
        "image_index": np.array([i for i, _, _ in flat], np.int64),
        "patch_mask": touched_patches(boxes, image_size // patch_size),
        "boxes": boxes.astype(np.float32),
        "is_image": np.array([box is None for _, _, box in flat], np.int64),
    }
    batch |= _texts(
        [caption for _, caption, _ in flat], tokenizer, seed, position, Stream.REGION_MLM, mlm, max_length, end
    )
    return _tensors(batch)


def touched_patches(boxes: np.ndarray, patches: int) -> np.ndarray:
    """Return the mask (T, 1 + patches^2) int64 of [CLS] and the patches that each relative box overlaps.

    Args:
        boxes: (T, 4) centre x, centre y, width, height in 0..1.
        patches: patches along a side.
    """
    centre, extent = boxes[:, :2] * patches, boxes[:, 2:] * patches
    # Rounding first: an edge that lies on a border between patches, up to float error, touches only its own side.
    low = np.floor(np.round(centre - extent / 2, 6)).clip(0, patches - 1)[:, :, None]
    high = np.ceil(np.round(centre + extent / 2, 6)).clip(low[:, :, 0] + 1, patches)[:, :, None]
    grid = np.arange(patches)
    inside = (low <= grid) & (grid < high)  # (T, 2, patches): columns, rows
    mask = np.ones((len(boxes), 1 + patches**2), np.int64)
    mask[:, 1:] = (inside[:, 1, :, None] & inside[:, 0, None, :]).reshape(len(boxes), -1)
    return mask


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """Return the part of a box that lies in an image of (width, height), or None when nothing does."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _relative_box(box: Box | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return centre x, centre y, width and height of a box in 0..1 of its image."""
    if box is None:
        return WHOLE_IMAGE
    clipped = clip_box(box, size)
    if clipped is None:
        raise MultiflowError(
            f"the box {tuple(box)} lies outside its image of {size[0]} x {size[1]} pixels or has no area; "
            "expected (x, y, width, height) in pixels of that image"
        )
    x, y, width, height = clipped
    return ((x + width / 2) / size[0], (y + height / 2) / size[1], width / size[0], height / size[1])


def _texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    position: int,
    stream: Stream,
    mlm: bool,
    max_length: int,
    end: bool,
) -> dict[str, np.ndarray]:
    ids, attention = encode_texts(tokenizer, texts, max_length=max_length, end=end)
    hidden = mask_tokens(ids, attention, tokenizer, seed=seed, position=position, stream=stream) if mlm else {}
    return {"input_ids": ids, "attention_mask": attention, **hidden}


def _tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in batch.items()}
