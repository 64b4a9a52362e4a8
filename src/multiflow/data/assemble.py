"""One batch from chosen items of a data set; what cannot be read is left out and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from numpy.random import Generator

from multiflow.base.errors import unknown
from multiflow.data.augment import AUGMENTATIONS, augment_image, augment_regions
from multiflow.data.collate import clip_box, collate_pairs, collate_regions
from multiflow.data.dataset import Box, BrokenItem, Dataset, Pair, RegionItem, Skip
from multiflow.data.images import CLIP_MEAN, CLIP_STD, UNREADABLE, decode, resize, size_of
from multiflow.data.plan import RegionPlan
from multiflow.data.seeds import Stream, random_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch: TypeAlias = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Inputs:
    """What a model takes: the arguments that `collate_pairs` and `collate_regions` share.

    Args:
        tokenizer: with [CLS], [PAD] and (for MLM) [MASK].
        image_size: height and width in pixels.
        patch_size: height and width of a patch; needed for regions.
        mean: channel means for values in [0, 1].
        std: channel standard deviations.
        max_length: tokens at most, [CLS] and [SEP] counted.
        mlm: whether batches hold the ``mlm_*`` entries.
        end: whether texts end with [SEP], as BLIP's do.
        augment: None, or ``paper``: crops, flips and RandAugment as in the published calibration (see `augment`).
    """

    tokenizer: PreTrainedTokenizerBase
    image_size: int
    patch_size: int | None = None
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    max_length: int = 40
    mlm: bool = True
    end: bool = False
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
    chances = _chances(inputs, seed, Stream.REGION_AUGMENT if of_regions else Stream.AUGMENT, position, len(chosen))
    images, captions, skips = [], [], []
    for index, share, chance in zip(chosen, pick, chances, strict=True):
        try:
            pair = data[index]
            caption = pair.captions[int(share * len(pair.captions))]
            if chance is None:
                images.append(_readable(pair.key, resize, pair.image, inputs.image_size))
            else:
                image = _readable(pair.key, decode, pair.image)
                images.append(augment_image(image, caption, inputs.image_size, chance))
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
    chances = _chances(inputs, plan.seed, Stream.REGION_AUGMENT, position, len(slots))
    images, regions, skips = [], [], []
    for (index, numbers), chance in zip(slots, chances, strict=True):
        try:
            item = data[index]
            image = _readable(item.key, decode, item.image)
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
    return Made(collate_regions(images, regions, **shared) if images else None, len(slots), tuple(skips))


def _chances(inputs: Inputs, seed: int, stream: Stream, position: int, count: int) -> Sequence[Generator | None]:
    """Return a generator of its own for each image of a batch, or None for each where nothing is augmented."""
    return [None] * count if inputs.augment is None else random_at(seed, stream, position).spawn(count)


def _readable(key: str, read: Callable[..., Value], *args: Any) -> Value:
    """Call `read`; what Pillow cannot decode becomes a `BrokenItem`."""
    try:
        return read(*args)
    except UNREADABLE as error:
        raise BrokenItem(key, str(error)) from error
