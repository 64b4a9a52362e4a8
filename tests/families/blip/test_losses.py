from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from multiflow.families.blip import losses
from multiflow.families.pairs import matching_loss


def test_similarity_divides_by_a_clamped_temperature():
    features, others = torch.randn(2, 4), torch.randn(4, 3)
    assert torch.equal(losses.similarity(features, others, torch.tensor(0.25)), features @ others / 0.25)
    hot = losses.similarity(features, others, torch.tensor(9.0))
    assert torch.equal(hot, features @ others / 0.5)
    assert losses.similarity(features.bfloat16(), others.bfloat16(), torch.tensor(0.1)).dtype == torch.float32


def test_targets_are_mixed_by_alpha():
    sim = torch.randn(3, 5)
    hard = torch.eye(3, 5)
    assert torch.equal(losses.soft_targets(sim, 0.0), hard)
    torch.testing.assert_close(losses.soft_targets(sim, 0.4), 0.4 * sim.softmax(1) + 0.6 * hard)
    torch.testing.assert_close(losses.soft_targets(sim, 0.4).sum(1), torch.ones(3))


def test_targets_are_spread_over_the_positives():
    sim, positives = torch.randn(2, 4), torch.tensor([[True, False, True, False], [False, True, False, False]])
    hard = torch.tensor([[0.5, 0, 0.5, 0], [0, 1.0, 0, 0]])
    torch.testing.assert_close(losses.soft_targets(sim, 0.0, positives), hard)
    torch.testing.assert_close(losses.soft_targets(sim, 0.3, positives), 0.3 * sim.softmax(1) + 0.7 * hard)
    assert torch.equal(losses.soft_targets(sim, 0.3, torch.eye(2, 4).bool()), losses.soft_targets(sim, 0.3))


def test_negatives_are_never_the_own_partner_and_a_function_of_the_seed():
    image_sim, text_sim = torch.randn(6, 6) * 5, torch.randn(6, 6) * 5
    draws = [losses.hard_negatives(image_sim, text_sim, seed) for seed in range(40)]
    own = torch.arange(6)
    assert not any((images == own).any() or (texts == own).any() for images, texts in draws)
    again = losses.hard_negatives(image_sim, text_sim, 7)
    assert torch.equal(again[0], draws[7][0])
    assert torch.equal(again[1], draws[7][1])
    assert len({tuple(images.tolist()) for images, _ in draws}) > 1


def test_negatives_follow_the_similarities_of_their_side():
    image_sim, text_sim = torch.zeros(3, 3), torch.zeros(3, 3)
    image_sim[0, 2] = text_sim[0, 1] = 50.0  # to image 0 text 2 is near, to text 0 image 1
    images, texts = losses.hard_negatives(image_sim, text_sim, 0)
    assert (images[0], texts[0]) == (1, 2)


def test_matching_loss_expects_the_first_rows_to_match():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    expected = (2 * math.log(1 + math.exp(-1)) + math.log(2)) / 3
    torch.testing.assert_close(matching_loss(logits, 1), torch.tensor(expected))


def test_language_loss_smooths_labels_and_ignores_padding():
    logits, ids, mask = torch.randn(2, 4, 9), torch.randint(9, (2, 4)), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    log = logits.log_softmax(-1)
    each = [
        -0.9 * log[row, place - 1, ids[row, place]] - 0.1 * log[row, place - 1].mean()
        for row, place in [(0, 1), (0, 2), (0, 3), (1, 1)]
    ]
    torch.testing.assert_close(losses.language_loss(logits, ids, mask), torch.stack(each).mean())
    assert not torch.isclose(
        losses.language_loss(logits, ids, mask), F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )


def test_answer_losses_are_sums_over_the_real_tokens_of_each():
    torch.manual_seed(0)
    head, states = torch.nn.Linear(3, 9), torch.randn(3, 4, 3)
    ids, mask = torch.randint(9, (3, 4)), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    found = losses.answer_losses(head, states, ids, mask)
    log = head(states).log_softmax(-1)
    each = lambda row, at: -0.9 * log[row, at - 1, ids[row, at]] - 0.1 * log[row, at - 1].mean()  # noqa: E731
    expected = torch.stack([each(0, 1) + each(0, 2) + each(0, 3), each(1, 1), torch.tensor(0.0)])
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), head.weight)
    (again,) = torch.autograd.grad(expected.sum(), head.weight)
    torch.testing.assert_close(gradient, again)
