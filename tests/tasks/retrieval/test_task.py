from __future__ import annotations

import json
from copy import deepcopy
from statistics import fmean

import pytest
import torch

from multiflow.tasks.inputs import Pixels, clean
from multiflow.tasks.retrieval.rerank import UNFOUND, Recall, RetrievalResult, evaluate_retrieval
from multiflow.tasks.retrieval.task import RESULTS, r1_of_images
from multiflow.tasks.task import TASKS
from multiflow.worlds.shapes.models import shapes_model
from tests.tiny import FAMILIES, TOKENIZER, tiny

TASK = TASKS["retrieval"]
families = pytest.mark.parametrize("family", ["xvlm", "blip"])


@pytest.fixture(scope="module")
def data(world):
    return TASK.open(world / "coco", "train")


@families
def test_a_batch_holds_pairs_of_the_data_and_can_be_trained_on(data, family):
    model = deepcopy(tiny(family, "retrieval"))  # BLIP's memory takes the batch in
    inputs = TASK.inputs(model, TOKENIZER, seed=1)
    batch = TASK.batch(data, inputs, 4, 2)
    assert all(
        torch.equal(x, y)
        for x, y in zip(batch.values(), TASK.batch(data, inputs, 4, 2).values(), strict=True)
        if isinstance(x, torch.Tensor)
    )
    for item, pixels, row in zip(batch["image_ids"].tolist(), batch["pixel_values"], batch["input_ids"], strict=True):
        assert torch.equal(pixels, Pixels(data, inputs)[item : item + 1][0])
        words = TOKENIZER.decode(row, skip_special_tokens=True)
        assert words in [
            TOKENIZER.decode(TOKENIZER(clean(t))["input_ids"], skip_special_tokens=True) for t in data.texts[item]
        ]
    value, figures = TASK.loss(model, batch, 2)
    assert value.isfinite()
    assert value.item() == pytest.approx(sum(x.item() for x in figures.values()))


def test_every_caption_is_shown_once_an_epoch(data):
    inputs = TASK.inputs(tiny("xvlm", "retrieval"), TOKENIZER)
    assert TASK.epoch(data) == data.pairs == 30
    shown = [tuple(row) for p in range(5) for row in TASK.batch(data, inputs, 6, p)["input_ids"].tolist()]
    words = [TOKENIZER.decode(row, skip_special_tokens=True) for row in shown]
    want = [TOKENIZER.decode(TOKENIZER(clean(t))["input_ids"], skip_special_tokens=True) for s in data.texts for t in s]
    assert sorted(words) == sorted(want)


def test_the_say_of_the_momentum_model_rises_in_the_first_epoch(data):
    inputs = TASK.inputs(tiny("blip", "retrieval"), TOKENIZER)
    ramps = [TASK.batch(data, inputs, 6, position)["ramp"] for position in (0, 1, 5, 9)]
    assert ramps == pytest.approx([0.0, 0.2, 1.0, 1.0])


@families
@pytest.mark.parametrize("trained", [False, True])
def test_the_figures_are_those_of_the_engine(data, family, trained, tmp_path):
    model = tiny(family, "retrieval") if trained else shapes_model(FAMILIES[family], len(TOKENIZER))
    seen = []
    figures = TASK.evaluate(
        model, TOKENIZER, data, batch_size=4, k_test=3, save=tmp_path, progress=lambda *x: seen.append(x)
    )
    inputs = TASK.inputs(model, TOKENIZER)
    captions = [[clean(text) for text in several] for several in data.texts]
    want = evaluate_retrieval(
        model, Pixels(data, inputs)[:], captions, TOKENIZER, shortlist=3, max_length=inputs.max_length
    )
    assert figures["TR@1"] == want.reranked.tr1
    assert figures["IR@10"] == want.reranked.ir10
    assert figures["ITC IR@5"] == want.itc.ir5
    assert TASK.score(figures) == want.reranked.mean
    assert TASK.main_of(figures) == "mean R@1"
    assert figures["mean R@1"] == pytest.approx((want.reranked.tr1 + want.reranked.ir1) / 2)
    assert len(figures.each) == len(data)
    assert fmean(figures.each) == pytest.approx(figures["mean R@1"])
    done = [count for count, _ in seen]
    assert done == sorted(set(done))
    assert {total for _, total in seen} == {30 + 6 + (30 + 6) * 3} == {done[-1]}
    lists = json.loads((tmp_path / RESULTS).read_text())
    assert lists == {"texts_of_image": want.top_texts.tolist(), "images_of_text": want.top_images.tolist()}


def result_of(text_ranks, image_ranks):
    none, nothing = Recall(0, 0, 0, 0, 0, 0), torch.empty(0, 0, dtype=torch.long)
    return RetrievalResult(none, none, torch.tensor(text_ranks), torch.tensor(image_ranks), nothing, nothing)


def test_the_r1_of_an_image_is_the_mean_of_its_hit_and_those_of_its_captions():
    found = result_of([0, 1, UNFOUND], [0, 3, 0, 0, UNFOUND, 1])
    assert r1_of_images(found, [2, 2, 2]) == [75, 50, 0]


def test_every_caption_weighs_the_same_where_images_differ_in_how_many_they_have():
    found = result_of([0, 4], [0, 0, 0, 0])  # TR@1 50, IR@1 100
    each = r1_of_images(found, [3, 1])
    assert each == [125, 25]
    assert fmean(each) == (50 + 100) / 2
