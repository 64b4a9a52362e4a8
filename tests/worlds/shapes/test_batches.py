from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multiflow.worlds.shapes.batches import joint_batch, vision_batch
from multiflow.worlds.shapes.models import shapes_tokenizer
from tests.tasks.small import FAMILIES, SMALL, SMALL_BLIP

TOKENIZER = shapes_tokenizer("blip")


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_batches_are_functions_of_the_position(settings):
    for make in (vision_batch, lambda settings, position: joint_batch(settings, TOKENIZER, position)):
        for position in (0, 3, 7):
            one, two = make(settings, position), make(settings, position)
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(make(settings, 0)["pixel_values"], make(settings, 1)["pixel_values"])
        seeded = make(replace(settings, seed=1), 0)
        assert not torch.equal(make(settings, 0)["pixel_values"], seeded["pixel_values"])


def test_every_so_many_batches_are_regions():
    kinds = ["boxes" in joint_batch(SMALL, TOKENIZER, position) for position in range(8)]
    assert kinds == [False, False, False, True] * 2
    never = replace(SMALL, region_every=0)
    assert not any("boxes" in joint_batch(never, TOKENIZER, position) for position in range(8))
    batch = joint_batch(SMALL, TOKENIZER, 7)
    assert len(batch["pixel_values"]) == 3
    assert set(batch["image_index"].tolist()) == {0, 1, 2}
    assert (batch["boxes"] > 0).all()
    assert (batch["boxes"] < 1).all()
    assert not batch["is_image"].any()


def test_the_batches_of_blip_are_pairs_whose_texts_end_with_sep():
    for position in range(8):
        batch = joint_batch(SMALL_BLIP, TOKENIZER, position)
        assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
        last = batch["attention_mask"].sum(1) - 1
        assert (batch["input_ids"].gather(1, last[:, None]) == TOKENIZER.sep_token_id).all()
        assert (batch["input_ids"] == TOKENIZER.sep_token_id).sum() == len(last)
        assert (batch["input_ids"][:, 0] == TOKENIZER.cls_token_id).all()
    pairs = joint_batch(SMALL, TOKENIZER, 0)
    assert torch.equal(pairs["pixel_values"], joint_batch(SMALL_BLIP, TOKENIZER, 0)["pixel_values"])
    assert not (pairs["input_ids"] == TOKENIZER.sep_token_id).any()


def test_the_curriculum_begins_with_one_object():
    long = replace(SMALL, steps=1000, batch_size=64, region_every=0)

    def words(position):
        return joint_batch(long, TOKENIZER, position)["attention_mask"].sum(1).float().mean()

    assert words(0) < words(60) < words(900)
