from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.contrastive import MEMORY, NO_IMAGE, follow, momentum_pairs
from multiflow.families.blip.models import BlipForRetrieval
from multiflow.families.blip.tasks import retrieval
from multiflow.families.opening import load_model
from tests.families.blip.sizes import pairs, small_model


def retrieval_model(**changes) -> BlipForRetrieval:
    return retrieval(small_model(**changes))[0]


@torch.no_grad()
@pytest.mark.parametrize("given", [{}, {"image_ids": torch.tensor([40, 7])}], ids=["without ids", "with ids"])
def test_pairs_of_different_images_have_the_losses_of_pretraining(given):
    pretrained, batch = small_model(), pairs(count=2)  # of two pairs each is the other's negative
    follow(pretrained, 0.0)
    model, _ = retrieval(pretrained)
    for _ in range(2):  # the second time from queues that hold the first batch
        out, expected = model(**batch, **given, alpha=0.3), pretrained(**batch, alpha=0.3)
        if not given:
            torch.testing.assert_close(out.loss_itc, expected.loss_itc)
        torch.testing.assert_close(out.loss_itm, expected.loss_itm)
        torch.testing.assert_close(out.itm_logits, expected.itm_logits)
        torch.testing.assert_close(out.loss, out.loss_itc + out.loss_itm)
    for name, buffer in model.named_buffers():
        if name != "image_ids_queue":
            torch.testing.assert_close(buffer, pretrained.get_buffer(name))


@torch.no_grad()
def test_texts_of_one_image_are_right_answers_wherever_they_are():
    """The contrastive loss against its formula, with positives in the batch and in the queue."""
    model, alpha = retrieval_model(), 0.4
    ids = [torch.tensor([5, 9, 5, 1]), torch.tensor([1, 5, 2, 2])]
    model(**pairs(), image_ids=ids[0], alpha=alpha)
    queues = {name: getattr(model, f"{name}_queue").clone() for name in ("image", "text", "image_ids")}
    assert queues["image_ids"][0].tolist() == [5, 9, 5, 1] + [NO_IMAGE] * 6
    out = model(**pairs(seed=1), image_ids=ids[1], alpha=alpha)

    assert model.image_ids_queue[0, 4:8].tolist() == [1, 5, 2, 2]
    slow_image, slow_text = model.image_queue[:, 4:8], model.text_queue[:, 4:8]
    there = torch.cat([ids[1], queues["image_ids"][0]])
    hard = torch.stack([(there == i) / (there == i).sum() for i in ids[1]])
    assert (hard > 0).sum(1).tolist() == [2, 3, 2, 2]
    sides = []
    for features, slow, others in (
        (out.image_feat, slow_image, torch.cat([slow_text, queues["text"]], 1)),
        (out.text_feat, slow_text, torch.cat([slow_image, queues["image"]], 1)),
    ):
        target = alpha * (slow.T @ others / model.temp).softmax(1) + (1 - alpha) * hard
        sides.append(-(target * (features @ others / model.temp).log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(out.loss_itc, (sides[0] + sides[1]) / 2)


@torch.no_grad()
def test_pairs_of_one_image_are_no_negatives():
    model, batch, seen = retrieval_model(), pairs(count=5), []
    batch["input_ids"][:, 1] = torch.arange(10, 15)  # tells the texts apart
    image_ids = torch.tensor([3, 3, 4, 3, 4])
    hook = model.text_encoder.register_forward_pre_hook(lambda _, a, given: seen.append(given), with_kwargs=True)
    with hook:
        for seed in range(20):
            model(**batch, image_ids=image_ids, seed=seed)
    images = model.encode_image(batch["pixel_values"])
    drawn = set()
    for given in (given for given in seen if "encoder_hidden_states" in given):
        texts = given["input_ids"][:, 1] - 10
        distance = (given["encoder_hidden_states"][:, None] - images).abs().amax((2, 3))
        assert distance.min(1).values.max() < 1e-6
        shown = distance.argmin(1)
        match = image_ids[texts] == image_ids[shown]
        assert match.tolist() == [True] * 5 + [False] * 10
        drawn.update(zip(texts[5:].tolist(), shown[5:].tolist(), strict=True))
    assert len(drawn) == 12  # every wrong pair is drawn some time


def test_a_batch_about_one_image_uses_its_pairs_alone_and_says_so():
    model, batch = retrieval_model(), pairs(count=3)
    with torch.no_grad(), pytest.warns(UserWarning, match="no hard negatives"):
        out = model(**batch, image_ids=torch.tensor([8, 8, 8]))
    torch.testing.assert_close(out.loss_itm, F.cross_entropy(out.itm_logits, torch.ones(3, dtype=torch.long)))


@torch.no_grad()
def test_copies_start_equal_and_follow_slowly():
    model = retrieval_model(momentum=0.75)
    assert all(torch.equal(slow, online) for slow, online in momentum_pairs(model))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    model(**pairs())
    for name, online in model.named_parameters():
        slow = dict(model.named_buffers()).get(re.sub(r"^(\w+?)\.", r"\1_m.", name))
        if slow is not None:
            torch.testing.assert_close(slow, 0.75 * before[name] + 0.25 * online)


@torch.no_grad()
def test_an_idle_process_moves_its_copies_and_nothing_else():
    model = retrieval_model()
    before = copy.deepcopy(model.state_dict())
    model.idle()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "_m." not in k)


def test_a_file_without_the_memory_loads(tmp_path):
    model = retrieval_model()
    model(**pairs(), image_ids=torch.arange(4))
    kept = {name: value for name, value in model.state_dict().items() if not re.search(MEMORY, name)}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = load_model(tmp_path)
    assert (loaded.image_ids_queue == NO_IMAGE).all()
    assert all(torch.equal(slow, online) for slow, online in momentum_pairs(loaded))


def test_image_ids_of_a_wrong_shape():
    with pytest.raises(MultiflowError, match=r"image_ids has shape \(3,\); .* 4 pairs"):
        retrieval_model()(**pairs(), image_ids=torch.arange(3))
