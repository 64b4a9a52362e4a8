from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.towers import read_batch
from tests.families.xvlm.sizes import pairs, regions


def test_the_keys_are_grouped():
    batch = read_batch(pairs(), losses=True)
    assert batch.regions is None
    assert batch.masked is not None
    region = read_batch(regions() | {"mlm_input_ids": None, "mlm_positions": None, "mlm_labels": None}, losses=True)
    assert region.masked is None
    assert region.regions is not None
    assert region.regions.boxes is not None


def test_what_only_losses_need_is_not_asked_for_without_them():
    batch = regions() | {"boxes": None, "mlm_labels": None}
    assert read_batch(batch, losses=False).masked is None
    with pytest.raises(MultiflowError, match="no 'mlm_labels'; .*mlm_input_ids, mlm_positions"):
        read_batch(batch, losses=True)


def test_masked_texts_are_as_long_as_the_texts():
    batch = pairs()
    batch["mlm_input_ids"] = batch["mlm_input_ids"][:, :5]
    with pytest.raises(MultiflowError, match=r"mlm_input_ids .*\(4, 5\) .*\(4, 7\)"):
        read_batch(batch, losses=True)
