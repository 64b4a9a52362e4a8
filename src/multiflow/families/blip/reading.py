"""How BLIP reads pairs: its calibration batches, and how it scores a pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from multiflow.data import Inputs, whole_images
from multiflow.families.batches import Counted, Source, open_source, pair_batches
from multiflow.families.blip.contrastive import ContrastiveBlip
from multiflow.families.opening import fitting_tokenizer, pixel_statistics
from multiflow.families.pairs import PairScoring

MOST_TOKENS = 30  # of a calibration text, as published


def calibration_pairs(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches for our BLIP; of regions it sees the whole image and one of its captions."""
    text = model.config.text
    return _pairs(place, source, model.config.image_size, text["vocab_size"], text["max_position_embeddings"])


def calibration_pairs_of_transformers(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches for the BLIP models of transformers; as `calibration_pairs`."""
    text, size = model.config.text_config, model.config.vision_config.image_size
    return _pairs(place, source, size, text.vocab_size, text.max_position_embeddings)


def _pairs(place: str, source: Source, size: int, vocabulary: int, positions: int) -> Counted:
    inputs = Inputs(
        fitting_tokenizer(source.tokenizer, place, vocabulary),
        size,
        max_length=min(MOST_TOKENS, positions),
        mlm=False,
        end=True,
        augment=source.augment,
        **pixel_statistics(place),
    )
    return pair_batches(whole_images(open_source(source, size)), inputs, source)


def _ground(model: ContrastiveBlip, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor) -> Tensor:
    return model.ground(kept, mask, images[image_index])[:, 0]


SCORING = PairScoring(
    keep=lambda ids, embeds: ids,
    match=_ground,
    adds_cosine=True,
)
