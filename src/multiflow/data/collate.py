"""From images and texts to batches: dicts of tensors with the names that X-VLM's forward takes.

`collate_pairs` and `collate_regions` take images and texts; `assemble_pairs` and `assemble_regions` read chosen items
of a data set, leave out what cannot be read, and name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator

from multiflow.base.errors import MultiflowError, unknown
from multiflow.data.augment import AUGMENTATIONS, augment_image, augment_regions
from multiflow.data.dataset import Box, BrokenItem, Dataset, Pair, RegionItem, Skip
from multiflow.data.images import CLIP_MEAN, CLIP_STD, Picture, decode, resize, size_of, to_pixels
from multiflow.data.sampling import RegionPlan, Stream, random_at
from multiflow.data.text import encode_texts, mask_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Batch: TypeAlias = Mapping[str, Any]
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


@dataclass(frozen=True)
class Inputs:
    """What a model takes: the arguments that `collate_pairs` and `collate_regions` share."""

    tokenizer: PreTrainedTokenizerBase  # with [CLS], [PAD] and (for MLM) [MASK]
    image_size: int  # height and width in pixels
    patch_size: int | None = None  # height and width of a patch; needed for regions
    mean: Sequence[float] = CLIP_MEAN  # channel means for values in [0, 1]
    std: Sequence[float] = CLIP_STD  # channel standard deviations
    max_length: int = 40  # tokens at most, [CLS] and [SEP] counted
    mlm: bool = True  # whether batches hold the ``mlm_*`` entries
    end: bool = False  # whether texts end with [SEP], as BLIP's do
    # None, or ``paper``: crops, flips and RandAugment as in the published calibration (see `augment`)
    augment: str | None = None

    def __post_init__(self) -> None:
        if self.augment not in (None, *AUGMENTATIONS):
            raise unknown("augmentation", self.augment, AUGMENTATIONS)

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments that both collate functions take."""
        names = ("tokenizer", "image_size", "mean", "std", "max_length", "mlm", "end")
        return {name: getattr(self, name) for name in names}


class Made(NamedTuple):
    """A batch, or None if all its images are broken; how many items were looked at; what was skipped."""

    batch: Batch | None
    seen: int
    skips: tuple[Skip, ...] = ()
    error: str | None = None


def assemble_pairs(
    data: Dataset[Pair],
    chosen: Sequence[int],
    inputs: Inputs,
    seed: int,
    position: int,
    of_regions: bool = False,
) -> Made:
    """Make a batch of pairs, with one of the captions of each image; `of_regions` draws for the region batch."""
    caption_stream = Stream.REGION_CAPTION if of_regions else Stream.CAPTION
    pick = random_at(seed, caption_stream, position).random(len(chosen)).tolist()
    stream = Stream.REGION_AUGMENT if of_regions else Stream.AUGMENT
    randomness = chances(inputs.augment, seed, stream, position, len(chosen))
    images, captions, skips = [], [], []
    for index, share, chance in zip(chosen, pick, randomness, strict=True):
        try:
            pair = data[index]
            caption = pair.captions[int(share * len(pair.captions))]
            images.append(read_pixels(pair, caption, inputs.image_size, chance))
        except BrokenItem as error:
            skips.append(error.skip)
            continue
        captions.append(caption)
    batch = collate_pairs(images, captions, seed=seed, position=position, **inputs.shared) if images else None
    return Made(batch, len(chosen), tuple(skips))


def assemble_regions(
    data: Dataset[RegionItem], plan: RegionPlan, epoch: int, number: int, inputs: Inputs, position: int
) -> Made:
    """Make a batch of regions; boxes that lie outside of their image are left out and named."""
    assert inputs.patch_size is not None
    slots = plan.slots(epoch, number)
    pick = random_at(plan.seed, Stream.REGION_CAPTION, position)
    randomness = chances(inputs.augment, plan.seed, Stream.REGION_AUGMENT, position, len(slots))
    images, regions, skips = [], [], []
    for (index, numbers), chance in zip(slots, randomness, strict=True):
        try:
            item = data[index]
            image = decode(item.image, item.key)
        except BrokenItem as error:
            skips.append(error.skip)
            continue
        kept: list[tuple[str, Box | None]] = []
        for text in plan.texts(index, epoch, first=int(item.regions[0].box is None))[numbers].tolist():
            captions, box = item.regions[text]
            if box is not None and clip_box(box, size_of(image)) is None:
                skips.append(Skip(f"{item.key}, region {text}", f"its box {box} lies outside the image or has no area"))
                continue
            kept.append((captions[int(pick.integers(len(captions)))], box))
        if kept and chance is not None:
            image, kept = augment_regions(image, kept, inputs.image_size, chance)
        if kept:
            images.append(image)
            regions.append(kept)
    shared = inputs.shared | {"patch_size": inputs.patch_size, "seed": plan.seed, "position": position}
    seen = sum(len(numbers) for _, numbers in slots)
    return Made(collate_regions(images, regions, **shared) if images else None, seen, tuple(skips))


def chances(augment: str | None, seed: int, stream: Stream, position: int, count: int) -> Sequence[Generator | None]:
    return [None] * count if augment is None else random_at(seed, stream, position).spawn(count)


def read_pixels(item: Any, text: str, size: int, chance: Generator | None) -> np.ndarray:
    """Return the image of an item as a uint8 array (size, size, 3), augmented where there is something to draw from."""
    if chance is None:
        return resize(item.image, size, key=item.key)
    return augment_image(decode(item.image, item.key), text, size, chance)
