from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.models import XVLMForVQA
from tests import golden_data
from tests.families.xvlm.sizes import pairs, small_model

KEYS = ("pixel_values", "input_ids", "attention_mask")


def questions(count=3):
    return {key: value for key, value in pairs(count).items() if key in KEYS}


def answers(count=6, length=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < 2 + torch.arange(count)[:, None] % (length - 1)).long()
    ids = torch.randint(4, 50, (count, length), generator=draw)
    ids[:, 0] = 3
    return ids * mask, mask


def batch():
    ids, mask = answers()
    weights = torch.tensor([0.6, 0.4, 1.0, 0.3, 0.3, 0.4])
    more = {"answer_weights": weights, "answers_per_question": torch.tensor([2, 1, 3])}
    return {**questions(), "answer_ids": ids, "answer_mask": mask, **more}


def answerer(**sizes) -> XVLMForVQA:
    return mf.task_model(small_model(**sizes), "vqa")


@pytest.fixture(scope="module")
def golden():
    return mf.task_model(golden_data.model("xvlm"), "vqa")


def golden_questions():
    given = golden_data.tensors("xvlm", "tasks")
    names = {"image": "pixel_values", "question_ids": "input_ids", "question_atts": "attention_mask"}
    return {ours: given[theirs] for theirs, ours in names.items()}, given


def test_the_loss_is_golden(golden):
    asked, given = golden_questions()
    out = golden(
        **asked,
        answer_ids=given["answer_ids"],
        answer_mask=given["answer_atts"],
        answer_weights=given["answer_weights"],
        answers_per_question=given["answers_per_question"],
    )
    torch.testing.assert_close(out.loss, given["xvlm_vqa_loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [512, 8, 1])
def test_the_ranking_is_golden_however_many_answers_are_scored_at_once(golden, monkeypatch, rows):
    monkeypatch.setattr("multiflow.families.answers.ROWS", rows)
    asked, given = golden_questions()
    ranking = golden.rank_answers(
        **asked, candidate_ids=given["candidate_ids"], candidate_mask=given["candidate_atts"], k=8
    )
    assert torch.equal(ranking.indices, given["xvlm_vqa_topk_ids"])
    torch.testing.assert_close(ranking.scores, given["xvlm_vqa_topk_probs"], rtol=1e-4, atol=0)


@torch.no_grad()
def test_the_loss_by_hand():
    """One question and one answer at a time, without padding."""
    model, given = answerer(), batch()
    owner, total = [0, 0, 1, 2, 2, 2], 0.0
    for i, question in enumerate(owner):
        length, words = int(given["answer_mask"][i].sum()), int(given["attention_mask"][question].sum())
        ids = given["answer_ids"][i : i + 1, :length]
        alone = {
            "pixel_values": given["pixel_values"][question : question + 1],
            "input_ids": given["input_ids"][question : question + 1, :words],
            "attention_mask": torch.ones(1, words, dtype=torch.long),
        }
        states = model.encode_question(**alone)
        decoded = model.text_decoder.bert.decode(ids, torch.ones_like(ids), states)
        logits = model.text_decoder.cls.predictions(decoded)[0, :-1]
        total += given["answer_weights"][i] * F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        single = model(
            **alone, answer_ids=ids, answer_mask=torch.ones_like(ids)
        ).loss  # weight 1, one answer a question
        torch.testing.assert_close(single, F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    torch.testing.assert_close(model(**given).loss, total / 3)


@torch.no_grad()
def test_the_ranking_by_hand():
    model, asked = answerer(), questions()
    ids, mask = answers(count=9, seed=1)
    ids[:, 1] = torch.arange(10, 19)  # no two begin alike
    ranking = model.rank_answers(**asked, candidate_ids=ids, candidate_mask=mask, k=4)
    each = [
        model(**asked, answer_ids=a.repeat(3, 1), answer_mask=m.repeat(3, 1)).answer_losses
        for a, m in zip(ids, mask, strict=True)
    ]
    states = model.encode_question(**asked)
    begin = torch.full((3, 1), 3)
    decoded = model.text_decoder.bert.decode(begin, None, states, asked["attention_mask"])
    first = model.text_decoder.cls.predictions(decoded)[:, 0].log_softmax(-1)[:, ids[:, 1]]
    for row in range(3):
        best = first[row].argsort(descending=True)[:4]
        scores = torch.stack([first[row, i] - each[i][row] for i in best])
        order = scores.argsort(descending=True)
        assert ranking.indices[row].tolist() == best[order].tolist()
        torch.testing.assert_close(ranking.scores[row], scores[order].softmax(0))


def test_of_equally_likely_first_tokens_the_earlier_answers_are_left_out():
    model, asked = answerer(), questions()
    ids = torch.tensor([[3, 7, 8], [3, 7, 9], [3, 7, 10]])
    ranking = model.rank_answers(**asked, candidate_ids=ids, candidate_mask=torch.ones_like(ids), k=2)
    assert {tuple(sorted(row)) for row in ranking.indices.tolist()} == {(1, 2)}


def test_a_list_shorter_than_k_is_ranked_whole():
    ids, mask = answers(count=5)
    ranking = answerer().rank_answers(**questions(), candidate_ids=ids, candidate_mask=mask)
    assert ranking.indices.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 3
    torch.testing.assert_close(ranking.scores.sum(1), torch.ones(3))


def test_the_decoder_starts_from_the_fusion_layers():
    model, task = small_model(vision=WIDE), answerer(vision=WIDE)
    text, decoder = model.text_encoder, task.text_decoder
    assert len(decoder.bert.encoder.layer) == 2
    for i, layer in enumerate(decoder.bert.encoder.layer):
        fusion = dict(text.bert.encoder.layer[1 + i].named_parameters())
        assert all(torch.equal(p, fusion[name]) for name, p in layer.named_parameters())
    assert torch.equal(decoder.bert.embeddings.word_embeddings.weight, text.bert.embeddings.word_embeddings.weight)
    assert torch.equal(decoder.cls.predictions.transform.dense.weight, text.cls.predictions.transform.dense.weight)
    assert decoder.cls.predictions.decoder.weight is decoder.bert.embeddings.word_embeddings.weight
    tokens = task.text_encoder.bert.embeddings.word_embeddings.weight
    assert tokens.data_ptr() != decoder.bert.embeddings.word_embeddings.weight.data_ptr()  # they part in training


WIDE = {"width": 32, "layers": 3, "heads": 2, "mlp": 40, "local_attn_depth": 2}  # as wide as the text


def test_keys_and_values_of_another_width_are_drawn_anew():
    task = answerer()
    for layer in task.text_decoder.bert.encoder.layer:
        for part in (layer.crossattention.self.key, layer.crossattention.self.value):
            assert part.weight.shape == (32, 32)
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not part.bias.any()
    assert torch.isfinite(task(**batch()).loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "the batch has no 'input_ids'"),
        ({"answer_ids": None}, "the batch has no 'answer_ids'; X-VLM needs answer_ids and answer_mask"),
        ({"answer_mask": None}, "the batch has no 'answer_mask'"),
        ({"answer_mask": torch.ones(6, 3)}, r"answer_mask has shape \(6, 3\) and answer_ids \(6, 4\)"),
        ({"answer_weights": torch.ones(3)}, r"answer_weights has shape \(3,\); give one weight for each of 6"),
        ({"answers_per_question": None}, "6 answers were given to 3 questions, and answers_per_question is None"),
        ({"answers_per_question": torch.tensor([2, 2, 3])}, r"answers_per_question is \[2, 2, 3\]"),
        (
            dict.fromkeys(("answer_ids", "answer_mask"), torch.ones(6, 1, dtype=torch.long)),
            r"answer_ids has shape \(6, 1\); this model takes \(answers, tokens\), from 2 to",
        ),
    ],
)
def test_bad_batches(change, message):
    with pytest.raises(MultiflowError, match=message):
        answerer()(**(batch() | change))


def test_bad_rankings():
    ids, mask = answers()
    with pytest.raises(MultiflowError, match="k is 0; it must be at least 1"):
        answerer().rank_answers(**questions(), candidate_ids=ids, candidate_mask=mask, k=0)


def test_without_fusion_layers_there_is_no_decoder():
    sizes = {"width": 32, "layers": 2, "fusion_layer": 2, "heads": 2, "mlp": 48, "vocab_size": 50}
    with pytest.raises(MultiflowError, match="fusion_layer is 2; .* less than text.layers"):
        answerer(text=sizes)
