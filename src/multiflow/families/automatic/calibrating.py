"""What a model of transformers is calibrated on: data of any layout, read through its own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.data.examples import ExampleBatches, Sample, examples_of
from multiflow.data.source import is_labelled, label_classes, open_data, open_images, open_labelled
from multiflow.families.automatic.listening import hears, listener_of, made_up_sound, refuse_other, refuse_prompt
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import DESCRIBE, Reader, reader_of
from multiflow.families.batches import Counted, Source

CLASS_PROMPT = "a photo of a {}."
MADE_UP = 224, 224  # pixels


def calibration_examples(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches for any model of transformers."""
    if source.data is None:
        raise MultiflowError("there are no data to calibrate on; give some with data= (--data SOURCE)")
    if hears(model):
        return _speech(model, place, source)
    reader = reader_of(
        model, load_processor(source.processor, place, model, trust=source.trust_remote_code), prompt=source.prompt
    )
    if reader.manner == "images":
        data, classes = open_images(source.data, source.images, source.split)
        refuse_other(model, data)
        known = getattr(model.config, "label2id", None) or {}
        labels = label_classes(classes, known) if classes and "labels" in reader.takes else None
        make = replace(reader, labels=labels).examples
    else:
        data, classes = open_examples(source)
        refuse_other(model, data)
        make = partial(_of_classes, reader) if classes and reader.manner == "pairs" else reader.examples
    batches = ExampleBatches(data, make, augment=source.augment, **source.options)
    return Counted(batches, "images" if reader.manner == "images" else data.kind, str(data))


def made_up_batch(model: Any, place: str, trust: bool = False) -> dict[str, Tensor]:
    """Return a batch of one picture, or one sound, of noise with a text, made by the model's own processor.

    Args:
        model: of transformers.
        place: where it was loaded from.
        trust: whether Python code that comes with the processor may run.

    Raises:
        MultiflowError: there is no processor at that place.
    """
    processor = load_processor(None, place, model, trust=trust)
    if hears(model):
        return listener_of(model, processor).examples([made_up_sound()])
    reader = reader_of(model, processor)
    noise = torch.randint(256, (*MADE_UP, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return reader.examples([Sample(Image.fromarray(noise.numpy()), DESCRIBE)])


def _speech(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches of speech for a model that listens."""
    refuse_prompt(model, source.prompt)
    listener = listener_of(model, load_processor(source.processor, place, model, trust=source.trust_remote_code))
    data = open_examples(source)[0]
    refuse_other(model, data)
    if source.augment is not None:
        raise MultiflowError(
            f"{{augment={source.augment}}} was given, and it is of images; leave it out for speech", field="augment"
        )
    return Counted(ExampleBatches(data, listener.examples, **source.options), data.kind, str(data))


def _of_classes(reader: Reader, examples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return a batch of images with the sentences that CLIP is asked for their classes."""
    return reader.examples([replace(of, text=CLASS_PROMPT.format(of.text)) for of in examples])


def open_examples(source: Source) -> tuple[Any, tuple[str, ...]]:
    """Open calibration data of any layout, and the names of their classes if they are labelled images."""
    assert source.data is not None
    columns = {"image_column": source.image_column, "text_column": source.text_column}
    try:
        return examples_of(open_data(source.data, images=source.images, split=source.split, **columns)), ()
    except MultiflowError:
        if not is_labelled(source.data):
            raise
    data = open_labelled(source.data, source.split)
    return data, data.classes
