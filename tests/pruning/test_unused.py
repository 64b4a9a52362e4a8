"""Layers that a model runs for nothing stay out of the budget, whoever asks for it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import multiflow as mf
from tests.families.automatic import tiny

WARNED = r"nothing of the model's output depends on 6 of 28 layers"


@pytest.fixture(scope="module")
def model():
    """A LLaVA whose config does not say that its batches take an earlier state of the vision tower."""
    config = tiny.build_config("llava", "LlavaForConditionalGeneration")
    config.vision_feature_layer = -1
    return tiny.build_from(config, "LlavaForConditionalGeneration")


@pytest.fixture(scope="module")
def batches(model):
    return [tiny.batch(model, padded=False) | {"vision_feature_layer": -2}] * 2


def idle(names):
    return [name for name in names if re.search(r"vision_tower\.encoder\.layers\.1\.", name)]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "lobs", "snip", "itersnip"])
def test_they_are_said_and_left_out_of_the_budget(model, batches, method):
    hyper = {"steps": 2, "batches_per_step": 1} if method == "itersnip" else {}
    with pytest.warns(UserWarning, match=WARNED) as said:
        result = mf.prune(model, method, 0.5, batches, **hyper)
    assert "vision_tower" in str(said[0].message)
    masks, layout = result.masks[0.5], mf.adapter_for(model).layout(model)
    assert len(idle(layout)) == 6
    assert set(layout) - set(masks) == set(idle(layout)) == set(result.settings["unused"])
    living = sum(layer.size for name, layer in layout.items() if name in masks)
    assert masks.layout.size == living
    if method != "wanda":  # which drops so many of each row
        assert sum(masks.dropped(name) for name in masks) == round(0.5 * living)


def test_they_count_where_the_output_depends_on_them(model):
    assert "unused" not in mf.prune(model, "wanda", 0.5, [tiny.batch(model, padded=False)]).settings


def test_statistics_know_what_was_left_out(model, batches, tmp_path):
    with pytest.warns(UserWarning, match=WARNED):
        stats = mf.calibrate(model, batches)
    again = mf.Stats.load(stats.save(tmp_path / "stats.safetensors"))
    with pytest.warns(UserWarning, match=WARNED):
        direct = mf.prune(model, "wanda", 0.5, batches)
    for given in (stats, again, stats.merge(again)):
        masks = mf.prune(model, "wanda", 0.5, given).masks[0.5]
        assert all(torch.equal(masks[name], direct.masks[0.5][name]) for name in direct.masks[0.5])
        assert list(masks) == list(direct.masks[0.5])


def test_batches_that_go_by_once_lose_none(model, batches):
    seen = []

    def generator():
        for number, batch in enumerate(batches):
            seen.append(number)
            yield batch

    with pytest.warns(UserWarning, match=WARNED):
        once = mf.prune(model, "wanda", 0.5, generator())
    assert seen == [0, 1]
    assert once.stats.batches == 2


def test_loaders_are_gone_through_as_often_as_before(model, batches):
    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches)

    loader = Loader()
    with pytest.warns(UserWarning, match=WARNED):
        mf.prune(model, "wanda", 0.5, loader)
    assert loader.passes == 1


def test_adapters_by_hand_count_what_they_name_unless_they_ask(model, batches):
    found = mf.adapter_for(model)
    by_hand = mf.Adapter(groups=found.groups, forward=found.forward)
    assert len(mf.prune(model, "wanda", 0.5, batches, adapter=by_hand).masks[0.5]) == 28
    asking = mf.Adapter(groups=found.groups, forward=found.forward, spares_unused=True)
    with pytest.warns(UserWarning, match=WARNED):
        assert len(mf.prune(model, "wanda", 0.5, batches, adapter=asking).masks[0.5]) == 22


def test_pruners_are_compared_on_the_same_layers(model, batches):
    with pytest.warns(UserWarning, match=WARNED):
        found = mf.compare_pruners(model, ["magnitude", "wanda"], 0.5, batches)
    assert {len(one.result.masks[0.5]) for one in found.pruners} == {22}


def test_units_are_pruned_without_them(model, batches):
    with pytest.warns(UserWarning, match=WARNED):
        result = mf.prune_units(model, "wanda", 0.5, batches)
    assert not idle(result.masks[0.5])


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("how", [list, iter, lambda batches: torch.utils.data.DataLoader(batches, batch_size=None)])
def test_what_a_later_batch_reaches_is_no_dead_layer(model, batches, at, how):
    mixed = [batches[0]] * at + [tiny.batch(model, padded=False)] + [batches[0]] * 2
    result = mf.prune(model, "wanda", 0.5, how(mixed))
    assert "unused" not in result.settings
    assert set(idle(result.masks[0.5]))
    whole = mf.prune(model, "wanda", 0.5, mixed, adapter=replace(mf.adapter_for(model), spares_unused=False))
    assert result.masks[0.5] == whole.masks[0.5]


def test_what_the_last_sample_of_a_batch_reaches_is_no_dead_layer():
    class Routed(nn.Module):
        """Texts go one way, images another; no sample goes both."""

        def __init__(self):
            super().__init__()
            self.first, self.texts, self.images = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, is_image):
            x = self.first(x)
            return torch.where(is_image[:, None], self.images(x), self.texts(x))[:, :2] * 1.0

    class Hidden(Routed):
        def forward(self, x, is_image):
            texts, images = self.texts(self.first(x)), self.images(self.first(x))
            return images if is_image.all() else texts if not is_image.any() else texts + images

    adapter = mf.Adapter(groups={"all": "."}, spares_unused=True)
    batch = {"x": torch.randn(3, 4), "is_image": torch.tensor([False, False, True])}
    for kind in (Routed, Hidden):
        assert set(mf.prune(kind(), "wanda", 0.5, [batch], adapter=adapter).masks[0.5]) == {"first", "texts", "images"}


def test_a_batch_that_cannot_be_made_is_told_and_not_swallowed(model, batches):
    def broken():
        yield from batches
        raise mf.MultiflowError("the third picture is lost")

    with pytest.raises(mf.MultiflowError, match="third picture"), pytest.warns(UserWarning, match=WARNED):
        mf.prune(model, "wanda", 0.5, broken())
