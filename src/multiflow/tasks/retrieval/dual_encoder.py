"""Retrieval by a dual encoder of transformers, such as CLIP: all images against all texts, by cosine alone.

As CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343) are evaluated: texts as they stand, images as the processor
makes them. Equal similarities go by the order of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiflow.calibration import evaluating
from multiflow.data.items import TaskData
from multiflow.families.automatic.reading import Reader
from multiflow.families.automatic.tasks import image_features, refuse_unable
from multiflow.tasks.read import Progress, by_processor, in_images, text_vectors
from multiflow.tasks.retrieval.rerank import Recall, RetrievalResult, recall
from multiflow.tasks.retrieval.task import TASK, retrieval_figures, write_lists
from multiflow.tasks.task import Figures

SHOWN = 10  # candidates a query that are kept
ROWS = 512  # queries compared at once


@torch.no_grad()
def evaluate_dual_encoder(
    model: Any,
    reader: Reader,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    save: str | Path | None = None,
    **pixels: Any,
) -> Figures:
    """Search all captions by image and all images by caption.

    See `Task.evaluate`; ``save`` gets ``retrieval.json``, as of `evaluate_pairs`.

    Returns:
        ``TR@1`` ... ``IR@10``, their ``mean recall``, and the ``mean R@1`` of both ways; ``each`` is the R@1 of each
        image.

    Raises:
        MultiflowError: the model does not compare images with texts.
    """
    refuse_unable(model, "retrieval")
    texts = [text for several in data.texts for text in several]
    with evaluating(model):
        images = torch.cat(
            [image_features(model, reader.images(part)).cpu() for _, part in in_images(data, batch_size, progress)]
        )
        captions = text_vectors(model, reader, texts, batch_size)
    counts = torch.tensor([len(several) for several in data.texts])
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    text_ranks, top_texts = _search(images, captions, torch.arange(len(images)), owner)
    image_ranks, top_images = _search(captions, images, owner, torch.arange(len(images)))
    found = Recall(*recall(text_ranks), *recall(image_ranks))
    result = RetrievalResult(found, found, text_ranks, image_ranks, top_texts, top_images)
    if save is not None:
        write_lists(result, save)
    figures = retrieval_figures(result, counts.tolist())
    plain = {name: value for name, value in figures.items() if not name.startswith("ITC ")}
    return Figures(plain, figures.each, figures.said)


def _search(queries: Tensor, answers: Tensor, of_query: Tensor, of_answer: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every query the rank (from 0) of its first right answer, and the answers found first.

    Args:
        queries: unit vectors (queries, dim).
        answers: unit vectors (answers, dim).
        of_query: which image each query belongs to.
        of_answer: which image each answer belongs to; the right ones are those of the same image.
    """
    ranks, tops = [], []
    for rows, image in zip(queries.split(ROWS), of_query.split(ROWS), strict=True):
        order = (rows @ answers.T).sort(dim=1, descending=True, stable=True).indices
        ranks.append((of_answer[order] == image[:, None]).int().argmax(1))
        tops.append(order[:, :SHOWN])
    return torch.cat(ranks), torch.cat(tops)


DUAL_ENCODER = by_processor(TASK, evaluate_dual_encoder)
