from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from multiflow.families.xvlm import losses


def test_the_contrastive_loss_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(5, 3), dim=-1) for _ in range(2))
    sim = losses.similarity(image, text, torch.tensor(0.2))
    torch.testing.assert_close(sim[1, 3], image[1] @ text[3] / 0.2)
    rows = -sim.log_softmax(1).diagonal().mean()
    columns = -sim.log_softmax(0).diagonal().mean()
    torch.testing.assert_close(losses.contrastive_loss(sim), (rows + columns) / 2)


def test_texts_of_one_image_share_the_contrastive_target():
    sim = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    positives = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    rows, columns = -sim.log_softmax(1), -sim.log_softmax(0).T
    expected = [(x[0, 0] + x[0, 2]) / 2 + x[1, 1] + (x[2, 0] + x[2, 2]) / 2 for x in (rows, columns)]
    torch.testing.assert_close(losses.contrastive_loss(sim, positives), sum(expected) / 6)
    alone = losses.contrastive_loss(sim, torch.eye(3).bool())
    torch.testing.assert_close(alone, losses.contrastive_loss(sim))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_next_token_is_told_by_the_one_before_it(smoothing):
    """The target is 1 - s on the right token and s / vocabulary on each other one; they need not add up to 1."""
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 3, -100, 6], [5, 0, 2, -100]])
    expected = torch.zeros(2, 3)
    for text, place, token in ((0, 0, 3), (0, 2, 6), (1, 0, 0), (1, 1, 2)):
        target = torch.full((7,), smoothing / 7)
        target[token] = 1 - smoothing
        expected[text, place] = -(target * logits[text, place].log_softmax(0)).sum()
    torch.testing.assert_close(losses.next_token_losses(logits, labels, smoothing), expected)


@pytest.mark.parametrize("pairs", [2, 3, 64])
def test_a_negative_is_never_the_right_pair(pairs):
    sim = torch.eye(pairs) * 1000  # the right pair has all the probability
    for seed in range(20):
        for negatives in losses.hard_negatives(sim, seed):
            assert not (negatives == torch.arange(pairs)).any()


def test_similar_ones_are_likelier_negatives():
    """Draws follow the softmax without the right pair, along rows for texts and columns for images."""
    sim = torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0] * 4, [2.0, 0.0, 0.0, 0.0], [0.0] * 4])
    draws = [losses.hard_negatives(sim, seed) for seed in range(2000)]
    for which, weights in ((0, sim.T.softmax(1)), (1, sim.softmax(1))):
        weights = weights.clone().fill_diagonal_(0)
        expected = weights[0] / weights[0].sum()
        counts = torch.bincount(torch.stack([draw[which][0] for draw in draws]), minlength=4) / len(draws)
        torch.testing.assert_close(counts, expected, atol=0.04, rtol=0)


def test_equal_seeds_draw_equal_negatives():
    sim = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = torch.stack(losses.hard_negatives(sim, 5))
    torch.manual_seed(2)
    assert torch.equal(first, torch.stack(losses.hard_negatives(sim, 5)))
    assert not torch.equal(first, torch.stack(losses.hard_negatives(sim, 6)))


def test_masked_tokens_count_equally_and_unused_slots_not_at_all():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, -100, -100], [2, 3, -100]])
    expected = -torch.stack([logits[0, 0].log_softmax(0)[1], *logits[1, :2].log_softmax(1)[[0, 1], [2, 3]]]).mean()
    torch.testing.assert_close(losses.masked_token_loss(logits, labels), expected)
    assert losses.masked_token_loss(logits, torch.full((2, 3), -100)) == 0


@pytest.mark.parametrize(
    ("a", "b", "giou"),
    [
        ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], 1.0),
        ([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0], 0.0),
        ([0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], -1 / 3),
        ([0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], 1 / 7 - 2 / 9),
        ([0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 2.0, 2.0], 1 / 16),
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], 0.0),  # a point: no area, no NaN
    ],
)
def test_generalized_iou(a, b, giou):
    assert losses.generalized_iou(torch.tensor([a]), torch.tensor([b])).item() == pytest.approx(giou)


def test_boxes_of_whole_images_do_not_count():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]])
    target = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.5, 1.0]])
    l1, giou = losses.box_losses(boxes, target, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(l1, torch.tensor((0.2 + 0.5) / 2))
    torch.testing.assert_close(giou, torch.tensor((0.5 + 0.5) / 2))
    alone = losses.box_losses(boxes[::2], target[::2], None)
    torch.testing.assert_close(torch.stack([l1, giou]), torch.stack(alone))
    assert losses.box_losses(boxes, target, torch.tensor([1, 1, 1])) == (0, 0)
