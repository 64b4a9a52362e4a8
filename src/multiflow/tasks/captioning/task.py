"""Captioning: a sentence about an image, written by beam search and compared with the sentences people wrote.

As X-VLM (arXiv 2111.08276) and BLIP (arXiv 2201.12086) are fine-tuned and evaluated: every caption begins with the
prompt "a picture of ", which counts in its length but not in its loss; three beams, 5 to 20 tokens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multiflow.base.files import write_atomically
from multiflow.calibration import evaluating
from multiflow.data.items import TaskData, open_items
from multiflow.tasks.captioning.metrics import caption_scores, check_names, missing_caption_metrics
from multiflow.tasks.inputs import (
    TaskInputs,
    clean,
    in_batches,
    labels_of,
    make_samples,
    samples_at,
    text_inputs,
    to_tensor,
    training_picture,
)
from multiflow.tasks.task import Figures, Task, model_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT = "a picture of"
BEAMS, SHORTEST, LONGEST = 3, 5, 20
RESULTS = "captions.json"


def caption_batch(data: TaskData, inputs: TaskInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return images, each with one of its captions after the prompt, and the labels of the captions."""

    def make(number: int, index: int) -> tuple[Any, str]:
        item, text = data.pair(index)
        return training_picture(data[item], (text,), inputs, number), f"{PROMPT} {clean(text)}"

    pictures, texts = zip(*make_samples(make, samples_at(data.pairs, inputs, batch_size, position)), strict=True)
    ids, mask = inputs.encode(texts, end=True)
    labels = labels_of(ids, mask, prompt_ids(inputs).shape[1])
    return {"pixel_values": to_tensor(pictures, inputs), "input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def write_captions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    batch_size: int = 32,
    beams: int = BEAMS,
    shortest: int = SHORTEST,
    longest: int = LONGEST,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> list[tuple[str, str]]:
    """Return (name of the image, caption) of every image, without the prompt, found by a search with some beams.

    The tokens of a caption are counted with the first one and the prompt.
    """
    inputs = text_inputs(model, tokenizer, **how)
    start = prompt_ids(inputs).to(model.device)
    lengths = {"num_beams": beams, "min_length": shortest, "max_length": longest, "do_sample": False}
    tokens = {"eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    said: list[tuple[str, str]] = []
    with evaluating(model):
        for items, pixels in in_batches(model, data, inputs, batch_size, progress):
            found = model.generate(pixels, start.expand(len(items), -1), **lengths, **tokens)
            texts = tokenizer.batch_decode(found[:, start.shape[1] :], skip_special_tokens=True)
            said += [(item.key, text.strip()) for item, text in zip(items, texts, strict=True)]
    return said


def evaluate_captioning(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    save: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    beams: int = BEAMS,
    **options: Any,
) -> Figures:
    """Caption every image and score the captions against those that people wrote.

    See `Task.evaluate`; ``save`` gets ``captions.json`` in the form of COCO's results: ``[{"image_id", "caption"}]``;
    ``metrics`` are names from `multiflow.metrics.CAPTION_METRICS`, None = all that can be computed; further options are
    those of `write_captions`. The official words need Java: without it, the metrics that go without them are computed
    on plain words, under names that say so (``CIDEr (words)``), with a warning.

    Returns:
        The metrics; ``each`` is the CIDEr of each image, in the order of the data, and empty where it was not computed.

    Raises:
        MultiflowError: a metric is unknown or cannot be computed.
    """
    check_metrics(metrics)
    kind = tokenizer_kind(metrics)
    said = write_captions(model, tokenizer, data, batch_size=batch_size, beams=beams, progress=progress, **options)
    return score_captions(said, data, kind, metrics, save)


def score_captions(
    said: Sequence[tuple[str, str]], data: TaskData, kind: Any, metrics: Sequence[str] | None, save: str | Path | None
) -> Figures:
    """Score (name of the image, caption) of every image, and write them where a folder is given."""
    if save is not None:
        results = [{"image_id": image_id(key), "caption": text} for key, text in said]
        write_atomically(Path(save) / RESULTS, json.dumps(results, indent=1) + "\n")
    predictions: dict[Hashable, str] = {i: text for i, (_, text) in enumerate(said)}
    references: dict[Hashable, Sequence[str]] = dict(enumerate(data.texts))
    scores = caption_scores(predictions, references, metrics=metrics, tokenizer=kind)
    return Figures(scores, scores.each, [text for _, text in said])


def tokenizer_kind(metrics: Sequence[str] | None) -> Any:
    """Return ``ptb``, the official words, or ``words`` with a warning where all that is lacking is Java."""
    missing = missing_caption_metrics()
    wanted = missing if metrics is None else metrics
    if "CIDEr" in missing and len(missing_caption_metrics("words")) < len(missing):
        warnings.warn(f"{', '.join(wanted)} cannot be computed as in papers: {missing['CIDEr']}", stacklevel=3)
        return "words"
    return "ptb"


def check_metrics(metrics: Sequence[str] | None) -> None:
    plain = missing_caption_metrics("words")
    check_names(metrics, {name: why for name, why in missing_caption_metrics().items() if name in plain})


def prompt_ids(inputs: TaskInputs) -> Tensor:
    """Return the tokens (1, length) that every caption begins with."""
    return inputs.encode([PROMPT], end=False)[0]


def image_id(key: str) -> int | str:
    """Return the number in a name of COCO, as its results want it; any other name as it is.

    >>> image_id("COCO_val2014_000000000042.jpg"), image_id("dog.jpg")
    (42, 'dog.jpg')
    """
    digits = Path(key).stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else key


TASK = Task(
    name="captioning",
    open=partial(open_items, "captioning", "pairs"),
    options=lambda data: {},
    inputs=partial(text_inputs, task="captioning"),
    batch=caption_batch,
    loss=model_loss,
    evaluate=evaluate_captioning,
    main="CIDEr",
    best="CIDEr",
    epoch=lambda data: data.pairs,
    check=lambda data, val_data, metrics=None, **options: check_metrics(metrics),
)
