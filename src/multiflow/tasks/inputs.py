"""How the batches of a task are made: order, pixels and tokens, all of them functions of seed and position.

Published fine-tuning augments images by a crop of a share of 0.5 to 1, a flip unless a text says left or right, and
RandAugment(2, 7).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.data import CLIP_MEAN, CLIP_STD, BrokenItem, SkipReport, encode_texts, to_pixels
from multiflow.data.augment import augment_image
from multiflow.data.images import decode, resize
from multiflow.data.items import TaskData
from multiflow.data.sampling import Stream, item_order, random_at
from multiflow.families.family import texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Made = TypeVar("Made")

CROP = (0.5, 1.0)  # share of the area
DROPPED = re.compile(r'[.!"()*#:;~\s]+')  # of captions and questions, as BLIP was trained


@dataclass(frozen=True)
class TaskInputs:
    """What a task model takes."""

    image_size: int  # height and width in pixels
    tokenizer: PreTrainedTokenizerBase | None = None  # the model's; None for images alone
    ends: bool = False  # whether texts end with [SEP], as BLIP's do
    max_length: int = 40  # tokens of a text at most
    augment: bool = False  # whether training images are augmented
    seed: int = 0  # of order, captions and augmentation
    mean: Sequence[float] = CLIP_MEAN  # channel means for values in [0, 1]
    std: Sequence[float] = CLIP_STD  # channel standard deviations
    # data set that a question is from -> how much its answers count; 1 where nothing is said
    weights: Mapping[str, float] = field(default_factory=dict)

    def encode(self, texts: Sequence[str], *, end: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask (texts, longest); ``end``: whether with [SEP], if not as usual."""
        assert self.tokenizer is not None
        ends = self.ends if end is None else end
        ids, mask = encode_texts(self.tokenizer, texts, max_length=self.max_length, end=ends)
        return torch.from_numpy(ids), torch.from_numpy(mask)


def text_inputs(
    model: Any, tokenizer: PreTrainedTokenizerBase, *, task: str = "", max_length: int | None = None, **rest: Any
) -> TaskInputs:
    """Return the inputs of a model of texts, as long as its family reads them for a task, and as it has positions."""
    config, texts = model.config, texts_of(model)
    most = config.text["max_position_embeddings"]
    length = min(texts.lengths.get(task, texts.length), most) if max_length is None else max_length
    if not 3 <= length <= most:
        raise MultiflowError(f"max_length {length} was given; expected 3 to {most} tokens, as the model has positions")
    if len(tokenizer) > config.text["vocab_size"]:
        raise MultiflowError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {config.text['vocab_size']}; "
            "give the tokenizer that belongs to the model"
        )
    return TaskInputs(config.image_size, tokenizer, texts.ends, length, **rest)


def clean(text: str) -> str:
    """Return a caption or question without the signs that BLIP was trained without, in lower case.

    >>> clean('A dog, "running". ')
    'a dog, running'
    """
    return DROPPED.sub(" ", text.lower()).strip()


class Seeded(Protocol):
    """How batches are made, as far as their order goes."""

    @property
    def seed(self) -> int:
        """Decides the order."""


def samples_at(count: int, inputs: Seeded, batch_size: int, position: int) -> list[tuple[int, int]]:
    """Return (number of the sample in the run, which of ``count`` it is) for the training batch at a position.

    Epochs follow each other without a gap, each in an order of its own: every batch is full.
    """
    if batch_size < 1 or position < 0:
        raise MultiflowError(f"batch_size {batch_size} and position {position} were given; expected at least 1 and 0")
    first = position * batch_size
    return [
        (n, int(item_order(count, inputs.seed, n // count, Stream.ORDER, True)[n % count]))
        for n in range(first, first + batch_size)
    ]


def make_samples(make: Callable[[int, int], Made], samples: Sequence[tuple[int, int]]) -> list[Made]:
    """Return ``make(number, index)`` of every sample; one whose image cannot be read is left out, with a warning.

    Raises:
        MultiflowError: none can be read.
    """
    made, broken = [], []
    for number, index in samples:
        try:
            made.append(make(number, index))
        except BrokenItem as error:
            broken.append(error.skip)
            warnings.warn(f"'{error.skip.key}' is left out of a batch: {error.skip.reason}", stacklevel=2)
    if not made:
        raise MultiflowError(f"no image of a batch can be read: {SkipReport(len(broken), tuple(broken))}; mend them")
    return made


def training_picture(item: Any, texts: Sequence[str], inputs: TaskInputs, number: int) -> np.ndarray:
    """Return the image of an item as a uint8 array (side, side, 3), augmented if the inputs say so.

    Args:
        item: with ``image`` and ``key``.
        texts: all texts that go with it; one that says left or right forbids the flip.
        inputs: of the task.
        number: of the sample in the run: decides what is drawn.
    """
    if not inputs.augment:
        return resize(item.image, inputs.image_size, key=item.key)
    image = decode(item.image, item.key)
    chance = random_at(inputs.seed, Stream.AUGMENT, number)
    return augment_image(image, " ".join(texts), inputs.image_size, chance, crop=CROP)


def to_tensor(pictures: Sequence[Any], inputs: TaskInputs) -> Float[Tensor, "images 3 side side"]:
    return torch.from_numpy(to_pixels(pictures, inputs.image_size, inputs.mean, inputs.std))


@dataclass(frozen=True)
class Pixels:
    """The pixel values of all images of some data, made when a slice of them is asked for."""

    data: TaskData
    inputs: TaskInputs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice) -> Float[Tensor, "images 3 side side"]:
        return read_items(self.data, range(*rows.indices(len(self))), self.inputs)[1]


def read_items(
    data: TaskData, numbers: Sequence[int], inputs: TaskInputs
) -> tuple[list[Any], Float[Tensor, "images 3 side side"]]:
    """Return items with their pixels, resized only.

    Raises:
        MultiflowError: an image cannot be read; an evaluation leaves none out.
    """
    plain = TaskInputs(inputs.image_size)
    with leaving_none_out(data):
        items = [data[i] for i in numbers]
        return items, to_tensor([training_picture(item, (), plain, 0) for item in items], inputs)


@contextmanager
def leaving_none_out(data: TaskData) -> Iterator[None]:
    """Make an error that stops the evaluation of an image that cannot be read inside the block."""
    try:
        yield
    except BrokenItem as error:
        raise MultiflowError(
            f"cannot read '{error.skip.key}' of {data}: {error.skip.reason}; fetch the file again, or take its entry "
            "out of the data: an evaluation leaves none out"
        ) from error


def in_batches(
    model: Any, data: TaskData, inputs: TaskInputs, batch_size: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[list[Any], Float[Tensor, "images 3 side side"]]]:
    """Yield the items in order, a batch at a time, with their pixels for the model; tell how many are done."""
    for first in range(0, len(data), batch_size):
        items, pixels = read_items(data, range(first, min(first + batch_size, len(data))), inputs)
        yield items, pixels.to(model.device, model.dtype)
        if progress is not None:
            progress(first + len(items), len(data))


def labels_of(ids: Int[Tensor, "texts length"], mask: Int[Tensor, "texts length"], prompt: int) -> Tensor:
    """Return tokens as labels: -100 where they are padding or belong to the first ``prompt`` ones."""
    hidden = mask == 0
    hidden[:, :prompt] = True
    return ids.masked_fill(hidden, -100)
