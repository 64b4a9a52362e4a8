from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.models import XVLMForRetrieval
from tests.families.xvlm.sizes import pairs, small_model

KEYS = ("pixel_values", "input_ids", "attention_mask")


def batch(count=4):
    return {key: value for key, value in pairs(count).items() if key in KEYS}


def retriever() -> XVLMForRetrieval:
    return mf.task_model(small_model(), "retrieval")


@torch.no_grad()
def test_the_losses_are_those_of_the_pretraining():
    """The pretraining model matches the golden losses; without masked words it computes the same two."""
    pretrained, model = small_model(), retriever()
    for seed in (0, 1):
        expected, out = pretrained(**batch(), seed=seed), model(**batch(), seed=seed)
        for name in ("loss", "loss_itc", "loss_itm", "itm_logits", "cross_embeds", "image_feat", "text_feat"):
            torch.testing.assert_close(out[name], expected[name], msg=name)
    torch.testing.assert_close(model(**batch(), image_ids=torch.tensor([5, 9, 2, 7])).loss, model(**batch()).loss)


@torch.no_grad()
def test_texts_of_one_image_share_the_target():
    model, ids = retriever(), torch.tensor([4, 8, 4, 4])
    out = model(**batch(), image_ids=ids)
    sim = out.image_feat @ out.text_feat.T / model.temp
    target = torch.tensor([[1, 0, 1, 1], [0, 3, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]) / 3
    torch.testing.assert_close(out.loss_itc, (F.cross_entropy(sim, target) + F.cross_entropy(sim.T, target)) / 2)


@torch.no_grad()
def test_pairs_of_one_image_are_no_negatives():
    """Of three texts of one image and one of another, each negative is the only one there is."""
    model, given = retriever(), batch()
    out = model(**given, image_ids=torch.tensor([4, 8, 4, 4]))
    text = model.encode_text(given["input_ids"], given["attention_mask"])
    image = model.encode_image(given["pixel_values"])

    def logits(texts, images):
        fused = model.fuse(text[texts], given["attention_mask"][texts], image[images])
        return model.itm_head(fused[:, 0])

    own = list(range(4))
    lone = [torch.cat([logits([1], [i]), logits([i], [1])]) for i in range(4)]  # with image or text 1, in both orders
    for seed in range(4):
        loss = model(**given, image_ids=torch.tensor([4, 8, 4, 4]), seed=seed).loss_itm
        known = [logits(own, own), lone[0], lone[2], lone[3]]
        choices = [
            F.cross_entropy(torch.cat([*known, logits([1], [i]), logits([j], [1])]), torch.tensor([1] * 4 + [0] * 8))
            for i in (0, 2, 3)
            for j in (0, 2, 3)
        ]
        assert min(abs(loss - choice) for choice in choices) < 1e-5
    torch.testing.assert_close(out.itm_logits, logits(own, own))


def test_a_batch_of_one_image_says_that_it_has_no_negatives():
    model = retriever()
    with torch.no_grad(), pytest.warns(UserWarning, match="a batch of one image has no hard negatives"):
        out = model(**batch(2), image_ids=torch.tensor([1, 1]))
    torch.testing.assert_close(out.loss_itm, F.cross_entropy(out.itm_logits, torch.tensor([1, 1])))


def test_bad_batches():
    with pytest.raises(MultiflowError, match="the batch has no 'attention_mask'"):
        retriever()(**(batch() | {"attention_mask": None}))
    with pytest.raises(MultiflowError, match=r"image_ids has shape \(3,\); .* 4 pairs"):
        retriever()(**batch(), image_ids=torch.arange(3))
