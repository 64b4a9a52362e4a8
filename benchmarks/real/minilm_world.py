"""MiniLM alone: which emoji is meant by these tags? The words of a label are taken out of its tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from benchmarks.real.folders import clipart, emoji
from benchmarks.real.models import minilm
from benchmarks.real.pictures import Picture, texts_of
from benchmarks.real.retrieval import hits
from benchmarks.real.towers import load_minilm
from benchmarks.real.world import Items, World
from multiflow.families.opening import quiet_transformers

FIGURE = "tags to the name of the emoji"
QUERIES, LEAST_TAGS, CALIBRATION, AT_ONCE = 400, 3, 256, 64


def query_of(picture: Picture) -> str | None:
    """Return the tags of an emoji without the words of its label; None if too few are left.

    >>> query_of(Picture("1", Path(), "red apple", ("apple", "fruit", "food", "healthy")))
    'fruit, food, healthy'
    """
    words = set(re.findall(r"\w+", picture.text.lower()))
    tags = [tag for tag in picture.tags if not words & set(re.findall(r"\w+", tag.lower()))]
    return ", ".join(tags) if len(tags) >= LEAST_TAGS else None


def open_world(cache: Path) -> World:
    """Open MiniLM, calibrated on the titles of clip art, which are of another origin than the emoji."""
    place = minilm(cache)
    with quiet_transformers():
        model = load_minilm(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    asked = [(query, picture.text.lower()) for picture in emoji(cache) if (query := query_of(picture))]
    step = max(1.0, len(asked) / QUERIES)
    chosen = [asked[int(at * step)] for at in range(min(QUERIES, len(asked)))]
    titles = [text for picture in clipart(cache) for text in texts_of(picture)]

    def batches(seed: int) -> list[dict[str, Tensor]]:
        order = torch.randperm(len(titles), generator=torch.Generator().manual_seed(seed))[:CALIBRATION].tolist()
        texts = [titles[at] for at in order]
        return [_encoded(tokenizer, texts[at : at + AT_ONCE]) for at in range(0, len(texts), AT_ONCE)]

    def evaluate(sparse: Any) -> Mapping[str, Items]:
        queries, names = (_vectors(sparse, tokenizer, list(side)) for side in zip(*chosen, strict=True))
        return {FIGURE: Items(hits(queries, names))}

    return World("MiniLM-L6", model, {FIGURE: "R@1"}, batches, evaluate, facts={"queries": len(chosen)})


def _encoded(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt"))


@torch.no_grad()
def _vectors(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return the mean of the real tokens, of length 1, as the encoder was trained."""
    found = []
    for at in range(0, len(texts), AT_ONCE):
        batch = _encoded(tokenizer, texts[at : at + AT_ONCE])
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        found.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(found)
