"""The ViT alone: does a pruned tower still know a thing by another artist? Emoji by Google against those by Twitter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.real.align import pixels
from benchmarks.real.folders import SIDE, training, unseen
from benchmarks.real.models import vit
from benchmarks.real.pictures import on_white
from benchmarks.real.retrieval import both_ways
from benchmarks.real.towers import LAST_GENERAL, load_vit
from benchmarks.real.world import Items, World
from multiflow.families.opening import quiet_transformers

FIGURE = "Google against Twitter emoji"
CALIBRATION, AT_ONCE = 64, 32


def open_world(cache: Path) -> World:
    """Open the first ten layers of the ViT, calibrated on pictures that the others were aligned on."""
    with quiet_transformers():
        model = load_vit(vit(cache, LAST_GENERAL))
    google, twitter = ([on_white(p.path, SIDE) for p in unseen(cache, artist)] for artist in ("google", "twitter"))
    seen = training(cache)

    def batches(seed: int) -> list[dict[str, Tensor]]:
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))[:CALIBRATION].tolist()
        chosen = [on_white(seen[at].path, SIDE) for at in order]
        return [{"pixel_values": pixels(chosen[at : at + AT_ONCE])} for at in range(0, len(chosen), AT_ONCE)]

    def evaluate(sparse: Any) -> Mapping[str, Items]:
        return {FIGURE: Items(both_ways(_vectors(sparse, google), _vectors(sparse, twitter)))}

    return World(
        "ViT-S/14, layers 1 to 10", model, {FIGURE: "mean R@1"}, batches, evaluate, facts={"pairs": len(google)}
    )


@torch.no_grad()
def _vectors(model: Any, pictures: Sequence[Any]) -> Tensor:
    """Return unit vectors of the class token, less their mean: what all pictures share tells none apart."""
    parts = [pictures[at : at + AT_ONCE] for at in range(0, len(pictures), AT_ONCE)]
    found = torch.cat([model(pixel_values=pixels(part)).pooler_output for part in parts])
    return F.normalize(found - found.mean(0), dim=-1)
