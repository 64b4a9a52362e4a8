from __future__ import annotations

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.families.answers import Answers, rank, read_answers, read_candidates, weigh

# two answers begin with token 1, three with 2, one with 3
LISTED = torch.tensor([[0, 1, 5], [0, 2, 5], [0, 1, 6], [0, 2, 6], [0, 2, 7], [0, 3, 5]])
LOGITS = torch.tensor([[0.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
CANDIDATES = Answers(LISTED, torch.ones_like(LISTED))


def best(k, loss, score=lambda first, lm: -lm):
    return rank(LOGITS, CANDIDATES, k, lambda rows, some: loss(some.ids), score)


def test_of_equally_likely_first_tokens_the_earlier_answers_are_left_out():
    for k, want in [(1, [[4], [2]]), (2, [[3, 4], [0, 2]]), (4, [[1, 3, 4, 5], [0, 2, 3, 4]])]:
        found = best(k, lambda ids: torch.arange(float(len(ids))))
        assert [sorted(row) for row in found.indices.tolist()] == want


def test_of_equal_scores_the_earlier_answer_comes_first():
    found = best(6, lambda ids: (ids[:, 2] == 5).float())
    assert found.indices.tolist() == [[2, 3, 4, 0, 1, 5]] * 2
    assert found.scores.tolist() == [[0, 0, 0, -1, -1, -1]] * 2


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_every_question_gets_the_scores_of_its_own_answers(monkeypatch, rows):
    monkeypatch.setattr("multiflow.families.answers.ROWS", rows)
    seen = []

    def losses(numbers, some):
        seen.extend(numbers[some.owner].tolist())
        return 10.0 * numbers[some.owner] + some.ids[:, 2]

    found = rank(LOGITS, CANDIDATES, 2, losses, torch.sub)
    assert seen == [0, 0, 1, 1]
    first = LOGITS.log_softmax(1)
    assert found.indices.tolist() == [[3, 4], [0, 2]]
    want = [[first[0, 2] - 6, first[0, 2] - 7], [first[1, 1] - 15, first[1, 1] - 16]]
    torch.testing.assert_close(found.scores, torch.tensor(want))


def test_answers_know_their_questions():
    ids, mask = torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2)
    assert read_answers("X", 9, 3, ids, mask).owner is None
    owned = read_answers("X", 9, 2, ids, mask, answers_per_question=torch.tensor([1, 2]))
    assert owned.owner.tolist() == [0, 1, 1]
    with pytest.raises(MultiflowError, match=r"answer_ids has shape \(3, 2\); this model takes .* from 2 to 1 tokens"):
        read_answers("X", 1, 3, ids, mask)
    with pytest.raises(MultiflowError, match="k is 0; it must be at least 1"):
        read_candidates("X", 9, ids, mask, 0)
    with pytest.raises(MultiflowError, match="no 'answer_ids'; .*answer_ids and answer_mask"):
        read_candidates("X", 9, None, mask, 1)


def test_the_loss_is_the_weighted_sum_over_the_number_of_questions():
    each = torch.tensor([1.0, 2.0, 4.0])
    assert weigh(each, torch.tensor([1.0, 0.5, 0.25]), 2).loss == 1.5
    out = weigh(each, None, 2)
    assert (out.loss, out.answer_losses.tolist()) == (3.5, [1, 2, 4])
