"""Captioning by any model that writes: what it says of an image when asked for a caption, scored as captions are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiflow.data.items import TaskData
from multiflow.families.automatic.reading import Reader
from multiflow.families.automatic.tasks import refuse_unable
from multiflow.tasks.captioning.task import BEAMS, TASK, check_metrics, score_captions, tokenizer_kind
from multiflow.tasks.read import Progress, by_processor, write_texts
from multiflow.tasks.task import Figures

LONGEST = 30  # tokens of a caption


def evaluate_captions(
    model: Any,
    reader: Reader,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    save: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    beams: int = BEAMS,
    max_new_tokens: int | None = None,
    **pixels: Any,
) -> Figures:
    """Caption every image and score the captions against those that people wrote; as `evaluate_captioning`.

    Of a chat model, a caption of a sentence is asked for: ``reader.prompt`` says it in other words.

    Raises:
        MultiflowError: the model writes no texts, or a metric is unknown or cannot be computed.
    """
    refuse_unable(model, "captioning")
    check_metrics(metrics)
    kind = tokenizer_kind(metrics)
    longest = max_new_tokens or LONGEST
    said = write_texts(
        model, reader, data, lambda item: None, batch_size=batch_size, longest=longest, beams=beams, progress=progress
    )
    return score_captions(said, data, kind, metrics, save)


GENERATIVE = by_processor(TASK, evaluate_captions)
