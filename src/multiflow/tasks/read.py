"""What the tasks of models that are read through their own processor have in common: samples and written texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from multiflow.calibration import evaluating
from multiflow.data.augment import augment_image
from multiflow.data.examples import Sample
from multiflow.data.images import decode
from multiflow.data.items import TaskData
from multiflow.data.sampling import Stream, random_at
from multiflow.families.automatic.reading import Reader
from multiflow.families.automatic.tasks import pairs_loss, text_features
from multiflow.tasks.inputs import CROP, leaving_none_out, make_samples, samples_at
from multiflow.tasks.task import Batch, Figures, Task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadInputs:
    """How the training batches of a task are made."""

    reader: Reader
    augment: bool = False  # whether images are augmented
    seed: int = 0  # of order, texts and augmentation


def read_inputs(model: Any, reader: Reader, *, augment: bool = False, seed: int = 0, **pixels: Any) -> ReadInputs:
    """Return how training batches are made; the processor knows pixels and lengths itself."""
    return ReadInputs(reader, augment, seed)


def pair_samples(data: TaskData, inputs: ReadInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return pairs of an image and one of its captions, as the model's forward takes them."""

    def make(number: int, index: int) -> Sample:
        item, text = data.pair(index)
        return training_sample(data[item], text, None, inputs, number)

    return inputs.reader.examples(make_samples(make, samples_at(data.pairs, inputs, batch_size, position)))


def training_sample(item: Any, text: str, prompt: str | None, inputs: ReadInputs, number: int) -> Sample:
    """Return an item with a text, its image augmented if the inputs say so; ``number`` decides what is drawn."""
    image = picture(item)
    if inputs.augment:
        chance = random_at(inputs.seed, Stream.AUGMENT, number)
        image = Image.fromarray(augment_image(image, f"{prompt or ''} {text}", min(image.size), chance, crop=CROP))
    return Sample(image, text, prompt)


def picture(item: Any) -> Image.Image:
    """Return the image of an item, whole and upright."""
    image = decode(item.image, item.key)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def read_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the model's loss of a batch of samples: of its labels, or contrastive."""
    return pairs_loss(getattr(model, "module", model), batch), {}


def by_processor(task: Task, evaluate: Callable[..., Figures], **changes: Any) -> Task:
    """Return a task as models do it that are read through their own processor: with data and figures of the same kind.

    Args:
        task: as models of our own families do it.
        evaluate: with such a model, see `Task.evaluate`.
        changes: of what else is different.
    """
    own: dict[str, Any] = {"inputs": read_inputs, "batch": pair_samples, "loss": read_loss, **changes}
    return replace(task, evaluate=evaluate, **own)


@torch.no_grad()
def write_texts(
    model: Any,
    reader: Reader,
    data: TaskData,
    prompt: Callable[[Any], str | None],
    *,
    batch_size: int,
    longest: int,
    beams: int = 1,
    progress: Progress | None = None,
) -> list[tuple[str, str]]:
    """Return (key, text) of every item: what the model writes of its image, never drawn at random.

    Args:
        model: one that generates.
        reader: how it reads.
        data: items with images.
        prompt: item -> what is asked of it; None = the usual.
        batch_size: items at once.
        longest: new tokens at most.
        beams: of the search; 1 = the likeliest token each time.
        progress: called with (items done, items in all).
    """
    said: list[tuple[str, str]] = []
    how = {"max_new_tokens": longest, "num_beams": beams, "do_sample": False}
    with evaluating(model):
        for items, images in in_images(data, batch_size, progress):
            batch = on_device(reader.questions(images, [prompt(item) for item in items]), model)
            found = model.generate(**batch, **how, pad_token_id=reader.tokenizer.pad_token_id)
            said += zip([item.key for item in items], reader.written(batch, found), strict=True)
    return said


def in_images(
    data: TaskData, batch_size: int, progress: Progress | None
) -> Iterator[tuple[list[Any], list[Image.Image]]]:
    """Yield items and their images in order, a batch at a time; tell how many are done."""
    for first in range(0, len(data), batch_size):
        with leaving_none_out(data):
            items = [data[i] for i in range(first, min(first + batch_size, len(data)))]
            images = [picture(item) for item in items]
        yield items, images
        if progress is not None:
            progress(first + len(items), len(data))


def text_vectors(model: Any, reader: Reader, texts: Sequence[str], batch_size: int) -> Float[Tensor, "texts dim"]:
    """Return the unit vector of each text, a batch of them at a time."""
    parts = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
    return torch.cat([text_features(model, reader.texts(part)).cpu() for part in parts])


def on_device(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Move a batch to where a model is."""
    return {name: value.to(model.device) for name, value in batch.items()}
