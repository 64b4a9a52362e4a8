"""Examples: an image with what is asked and said of it, or a sound with what is said in it, of any kind of data.

Models that are read through their own processor take these; how a batch is made of them is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data.audio import Sound
from multiflow.data.augment import augment_image
from multiflow.data.batches import Repeatable
from multiflow.data.collate import Made, chances
from multiflow.data.dataset import AnyData, BrokenItem, Clip, Dataset, Mixed, join, whole_images
from multiflow.data.images import decode
from multiflow.data.items import answer_weights
from multiflow.data.sampling import Stream, item_order, random_at


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with a text."""

    image: Image.Image  # RGB, whole and upright
    text: str  # the caption, or the answer
    prompt: str | None = None  # what is asked of the image; None where the data do not say


@dataclass(frozen=True, slots=True)
class Spoken:
    """One sound with what is said in it."""

    sound: Sound  # of one channel, at the rate of its file
    text: str  # the transcript
    key: str  # what errors call it


Make = Callable[[Sequence[Any]], Mapping[str, Any]]
"""``make(examples)`` -> a batch of samples, or of what is spoken."""


def examples_of(data: AnyData) -> Dataset[Any]:
    """Return pairs or questions as one data set; regions become whole images with the captions of their regions."""
    if isinstance(data, Mixed):
        whole: Any = whole_images(data)
        return join([whole.pairs, whole.regions])  # type: ignore[return-value]
    return whole_images(data)  # type: ignore[return-value]


def example_of(item: Any, share: float, chance: Any = None) -> Sample | Spoken:
    """Return a pair, a question or a clip as an example.

    Args:
        item: a `Pair`, a `Question` or a `Clip`.
        share: in [0, 1): which of its captions or answers is taken; answers count by how many people gave them.
        chance: a generator that augments the image; None leaves it as it is.

    Raises:
        BrokenItem: its image cannot be read, or a question has no answer.
    """
    if isinstance(item, Clip):
        return Spoken(item.sound, item.text, item.key)
    if hasattr(item, "captions"):
        number = int(share * len(item.captions))
        text, prompt = item.captions[number], (item.prompts[number] or None) if item.prompts else None
    else:
        text, prompt = _drawn(item, share), item.question
    image = decode(item.image, item.key)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if chance is not None:
        image = Image.fromarray(augment_image(image, f"{prompt or ''} {text}", min(image.size), chance))
    return Sample(image, text, prompt)


def _drawn(question: Any, share: float) -> str:
    """Return one of the answers to a question."""
    if not question.answers:
        raise BrokenItem(question.key, "it has no answer")
    for answer, weight in answer_weights(question.answers).items():
        share -= weight
        if share < 0:
            return answer
    return question.answers[-1]


@dataclass(frozen=True, repr=False)
class ExampleBatches(Repeatable):
    """Batches of examples, in an order that the seed decides; broken images are skipped, as of `Batches`."""

    data: Dataset[Any]  # pairs, questions or speech
    make: Make  # makes a batch of examples
    batch_size: int = 32  # the last batch may be smaller
    limit: int | None = None  # batches at most
    seed: int = 0  # of the order, of captions and of augmentation
    augment: str | None = None  # None, or ``paper``: crops, flips and RandAugment as in the published calibration
    workers: int = 0  # processes that read, decode and process in the background
    start: int = field(default=0, init=False)
    _pass: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        batches = -(-len(self.data) // self.batch_size)
        return batches if self.limit is None else min(batches, self.limit)

    def __str__(self) -> str:
        return str(self.data)

    @property
    def _known_skips(self) -> Iterable[Any]:
        return self.data.skipped

    def _make(self, number: int) -> Made:
        order = item_order(len(self.data), self.seed, 0, Stream.ORDER, shuffle=True)
        chosen = order[number * self.batch_size :][: self.batch_size].tolist()
        shares = random_at(self.seed, Stream.CAPTION, number).random(len(chosen)).tolist()
        randomness = chances(self.augment, self.seed, Stream.AUGMENT, number, len(chosen))
        examples, skips = [], []
        for index, share, chance in zip(chosen, shares, randomness, strict=True):
            try:
                examples.append(example_of(self.data[index], share, chance))
            except BrokenItem as error:
                skips.append(error.skip)
        batch = None
        while examples and batch is None:
            try:
                batch = self.make(examples)
            except BrokenItem as error:  # of what is spoken, which has a key
                skips.append(error.skip)
                examples = [of for of in examples if getattr(of, "key", error.skip.key) != error.skip.key]
            except MultiflowError as error:
                return Made(None, 0, error=str(error))
        return Made(batch, len(chosen), tuple(skips))
