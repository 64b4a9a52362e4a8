"""How X-VLM reads pairs: its calibration batches, and how it scores a pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multiflow.data import Inputs
from multiflow.families.batches import Counted, Source, open_source, pair_batches
from multiflow.families.opening import fitting_tokenizer
from multiflow.families.pairs import PairScoring
from multiflow.families.xvlm.towers import XVLMPairs

MOST_TOKENS = 40  # of a calibration text, as published


def calibration_pairs(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches of pairs, and of regions where the data have them."""
    config, text = model.config, model.config.text
    inputs = Inputs(
        fitting_tokenizer(source.tokenizer, place, text["vocab_size"]),
        config.image_size,
        config.patch_size,
        max_length=min(MOST_TOKENS, text["max_position_embeddings"]),
        augment=source.augment,
    )
    return pair_batches(open_source(source, config.image_size), inputs, source)


def _fuse(model: XVLMPairs, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor) -> Tensor:
    return model.fuse(kept, mask, images, image_index=image_index)[:, 0]


SCORING = PairScoring(
    keep=lambda ids, embeds: embeds,
    match=_fuse,
    adds_cosine=False,
)
