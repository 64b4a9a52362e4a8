"""Retrieval: find the captions of an image, and the image of a caption.

Trained with ITC and ITM on pairs of an image and one of its captions; evaluated as published, see `rerank`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multiflow.base.files import write_atomically
from multiflow.data.items import TaskData, open_items
from multiflow.data.sampling import seed_at
from multiflow.tasks.inputs import (
    Pixels,
    TaskInputs,
    clean,
    make_samples,
    samples_at,
    text_inputs,
    to_tensor,
    training_picture,
)
from multiflow.tasks.retrieval.rerank import Recall, RetrievalResult, evaluate_retrieval
from multiflow.tasks.task import Batch, Figures, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTLIST = 256  # as published
RESULTS = "retrieval.json"


def pair_batch(data: TaskData, inputs: TaskInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return pairs of an image and one of its captions, with the number of the image in the data.

    Further entries: ``seed`` of the hard negatives, and ``ramp``, which rises from 0 to 1 in the first epoch.
    """

    def make(number: int, index: int) -> tuple[Any, str, int]:
        item, text = data.pair(index)
        return training_picture(data[item], (text,), inputs, number), clean(text), item

    made = make_samples(make, samples_at(data.pairs, inputs, batch_size, position))
    ids, mask = inputs.encode([text for _, text, _ in made])
    return {
        "pixel_values": to_tensor([picture for picture, *_ in made], inputs),
        "input_ids": ids,
        "attention_mask": mask,
        "image_ids": torch.tensor([item for *_, item in made]),
        "seed": seed_at(inputs.seed, position),
        "ramp": min(1.0, position * batch_size / data.pairs),
    }


def retrieval_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return ITC + ITM, and both; BLIP's momentum model has its say as the ramp rises."""
    given = dict(batch)
    ramp, config = given.pop("ramp"), getattr(model, "module", model).config
    if hasattr(config, "alpha"):
        given["alpha"] = ramp * config.alpha
    out = model(**given)
    return out.loss, {name: out[name] for name in ("loss_itc", "loss_itm")}


def evaluate_pairs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    save: str | Path | None = None,
    k_test: int = SHORTLIST,
    **how: Any,
) -> Figures:
    """Search the captions by image and the images by caption; also with a model that was pretrained only.

    See `Task.evaluate`; ``save`` gets ``retrieval.json``: for each image the captions found, for each caption the
    images, best first; ``k_test`` candidates a query are re-ranked.

    Returns:
        ``TR@1`` ... ``IR@10``, their ``mean recall``, the ``mean R@1`` of both ways, and ``ITC TR@1`` ... of the
        contrastive similarity alone. ``each`` is the R@1 of each image, in the order of the data, see `r1_of_images`.
    """
    inputs = text_inputs(model, tokenizer, **how)
    captions = [[clean(text) for text in several] for several in data.texts]
    found = evaluate_retrieval(
        model,
        Pixels(data, inputs),
        captions,
        tokenizer,
        shortlist=k_test,
        batch_size=batch_size,
        max_length=inputs.max_length,
        progress=progress,
    )
    if save is not None:
        write_lists(found, save)
    return retrieval_figures(found, [len(several) for several in captions])


def write_lists(found: RetrievalResult, folder: str | Path) -> None:
    """Write what was found first of all queries."""
    lists = {"texts_of_image": found.top_texts[:, :10], "images_of_text": found.top_images[:, :10]}
    write_atomically(Path(folder) / RESULTS, json.dumps({name: rows.tolist() for name, rows in lists.items()}) + "\n")


def retrieval_figures(found: RetrievalResult, counts: Sequence[int]) -> Figures:
    """Return the figures of what was found, as `evaluate_pairs` does; ``counts``: how many captions each image has."""
    itc = {f"ITC {name}": value for name, value in _named(found.itc).items()}
    r1 = fmean([found.reranked.tr1, found.reranked.ir1])
    means = {"mean recall": found.reranked.mean, "mean R@1": r1}
    first = [f"text {number}" for number in found.top_texts[:, 0].tolist()]
    return Figures({**_named(found.reranked), **means, **itc}, r1_of_images(found, counts), first)


def r1_of_images(found: RetrievalResult, counts: Sequence[int]) -> list[float]:
    """Return for each image the mean of its own hit and the hits of its captions, in percent.

    The captions of an image count by their mean hit times ``c / mean(c)``, where ``c`` is how many it has. So every
    caption weighs the same, and the mean over the images is (TR@1 + IR@1) / 2 also where images differ in how many
    captions they have; an image that has more than most can then be above 100.

    Args:
        found: what `evaluate_retrieval` found.
        counts: how many captions each image has.
    """
    hits = torch.stack([part.sum() for part in (found.image_ranks == 0).split(list(counts))])
    share = hits.double() * len(counts) / sum(counts)
    return (50 * ((found.text_ranks == 0) + share)).tolist()


def _named(found: Recall) -> dict[str, float]:
    return {f"{name[:2].upper()}@{name[2:]}": value for name, value in asdict(found).items()}


TASK = Task(
    name="retrieval",
    open=partial(open_items, "retrieval", "pairs"),
    options=lambda data: {},
    inputs=text_inputs,
    batch=pair_batch,
    loss=retrieval_loss,
    evaluate=evaluate_pairs,
    main="mean R@1",
    best="mean recall",
    epoch=lambda data: data.pairs,
)
