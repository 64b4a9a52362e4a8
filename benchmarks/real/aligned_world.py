"""The aligned image-text model, pruned without knowing what it is for, and carried over to art that it has not seen.

Calibration: pictures and names that it was aligned on. Transfer, without any training: emoji as another artist draws
them (ids that no training has seen), stamps of Tux Paint, and the groups of emoji as classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, VisionTextDualEncoderModel

import multiflow as mf
from benchmarks.real.align import align, pixels
from benchmarks.real.folders import SIDE, stamps, table_of, training, unseen
from benchmarks.real.pictures import Picture, on_white
from benchmarks.real.retrieval import both_ways, classified
from benchmarks.real.towers import scales
from benchmarks.real.world import Items, World
from multiflow.families.automatic.tasks import image_features, text_features
from multiflow.families.opening import quiet_transformers

GROUPS = {
    "smileys-emotion": ("smiling face", "emotion", "heart"),
    "people-body": ("person", "hand", "part of the body"),
    "animals-nature": ("animal", "plant", "insect"),
    "food-drink": ("food", "fruit", "drink"),
    "travel-places": ("vehicle", "building", "weather"),
    "activities": ("sport", "game", "celebration"),
    "objects": ("tool", "clothing", "household object"),
    "symbols": ("symbol", "arrow", "sign"),
}
"""What the groups of emoji are called here; each class is the mean of its words."""
STYLE = "Twitter emoji, pictures and names"
STAMPS = "Tux Paint stamps, pictures and captions"
CLASSES = "Twitter emoji, eight groups"
CALIBRATION = {"batches": 4, "batch_size": 32}
AT_ONCE = 64


def open_world(cache: Path) -> World:
    """Open the aligned model, which is made first if it is not in the cache."""
    with quiet_transformers():
        model = VisionTextDualEncoderModel.from_pretrained(align(cache)).eval()
    tokenizer = AutoTokenizer.from_pretrained(align(cache))
    training(cache)
    emoji, painted = unseen(cache, "twitter"), stamps(cache)
    layout = mf.adapter_for(model).layout(model)
    groups = {group: [layer.name for layer in layers] for group, layers in layout.groups.items()}
    return World(
        title="Aligned ViT and MiniLM",
        model=model,
        figures={STYLE: "mean R@5", STAMPS: "mean R@5", CLASSES: "top-1"},
        batches=partial(_batches, model, str(table_of(cache, "training"))),
        evaluate=partial(
            measure,
            tokenizer=tokenizer,
            style=[on_white(picture.path, SIDE) for picture in emoji],
            emoji=emoji,
            stamps=[on_white(picture.path, SIDE) for picture in painted],
            captions=[picture.text.lower() for picture in painted],
        ),
        facts={"emoji": len(emoji), "stamps": len(painted), "towers": scales(model, groups)},
    )


def _batches(model: nn.Module, table: str, seed: int) -> list[Any]:
    return list(mf.calibration_batches(model, table, seed=seed, **CALIBRATION))


def measure(
    model: Any,
    *,
    tokenizer: Any,
    style: Sequence[Any],
    emoji: Sequence[Picture],
    stamps: Sequence[Any],
    captions: Sequence[str],
) -> Mapping[str, Items]:
    """Measure all three transfers; the pictures of emoji are looked at once."""
    drawn, names = _images(model, style), _texts(model, tokenizer, [picture.text.lower() for picture in emoji])
    painted, said = _images(model, stamps), _texts(model, tokenizer, captions)
    words = [word for group in GROUPS.values() for word in group]
    vectors = _texts(model, tokenizer, words).unflatten(0, (len(GROUPS), -1)).mean(1)
    labels = [list(GROUPS).index(picture.group) for picture in emoji]
    return {
        STYLE: _found(drawn, names),
        STAMPS: _found(painted, said),
        CLASSES: Items(classified(drawn, F.normalize(vectors, dim=-1), labels)),
    }


def _found(pictures: Tensor, texts: Tensor) -> Items:
    """Search both ways; R@5 tells pruners better apart than R@1 where even the dense model is often just beside."""
    means = {f"mean R@{k}": fmean(both_ways(pictures, texts, k)) for k in (1, 10)}
    return Items(both_ways(pictures, texts, 5), means)


@torch.no_grad()
def _images(model: Any, pictures: Sequence[Any]) -> Tensor:
    parts = [pictures[at : at + AT_ONCE] for at in range(0, len(pictures), AT_ONCE)]
    return torch.cat([image_features(model, {"pixel_values": pixels(part)}) for part in parts])


@torch.no_grad()
def _texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    return torch.cat(
        [
            text_features(model, dict(tokenizer(list(texts[at : at + AT_ONCE]), padding=True, return_tensors="pt")))
            for at in range(0, len(texts), AT_ONCE)
        ]
    )
