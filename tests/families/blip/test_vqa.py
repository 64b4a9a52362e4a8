from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from multiflow.base.errors import MultiflowError
from multiflow.families.blip.models import BlipForVQA
from multiflow.families.blip.tasks import vqa
from multiflow.families.opening import load_model
from tests import golden_data
from tests.families.blip.sizes import questions, small_model

ASKED = ("pixel_values", "input_ids", "attention_mask")


def vqa_model(**options) -> BlipForVQA:
    torch.manual_seed(1)
    model, _ = vqa(small_model(), **options)
    for layer in model.text_decoder.bert.encoder.layer:  # drawn anew, as the towers differ in width
        torch.nn.init.normal_(layer.crossattention.self.key.weight, std=0.5)
        torch.nn.init.normal_(layer.crossattention.self.value.weight, std=0.5)
    return model


def candidates(count: int = 9) -> dict[str, torch.Tensor]:
    """Answers of one to three tokens; some begin alike."""
    draw = torch.Generator().manual_seed(5)
    mask = (torch.arange(5) < 2 + torch.arange(count)[:, None] % 3).long()
    ids = torch.randint(3, 48, (count, 5), generator=draw) * mask
    ids[::4, 1], ids[6, 1] = 17, 18  # no two are the same
    return {"candidate_ids": ids, "candidate_mask": mask}


@torch.no_grad()
def test_loss_and_ranking_match_the_golden_outputs():
    stored = golden_data.tensors("blip", "tasks")
    model, _ = vqa(golden_data.model("blip"))
    asked = {
        ours: stored[theirs] for ours, theirs in zip(ASKED, ("image", "question_ids", "question_atts"), strict=True)
    }
    answers = {name: stored[name] for name in ("answer_ids", "answer_weights", "answers_per_question")}
    out = model(**asked, **answers, answer_mask=stored["answer_atts"])
    torch.testing.assert_close(out.loss, stored["blip_vqa_loss"], rtol=1e-4, atol=0)
    listed = {"candidate_ids": stored["candidate_ids"], "candidate_mask": stored["candidate_atts"]}
    ranking = model.rank_answers(**asked, **listed, k=8)
    assert ranking.indices.shape == (3, 8)
    assert torch.equal(ranking.indices[:, 0], stored["blip_vqa_answer_ids"])


@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_answers_one_by_one():
    model, batch = vqa_model(), questions()
    out, expected = model(**batch), []
    for answer, question in enumerate([0, 0, 1, 2]):
        asked = [batch[name][question, None] for name in ASKED]
        length = int(batch["answer_mask"][answer].sum())
        ids = batch["answer_ids"][answer, :length].clone()
        ids[0] = model.config.bos_token_id
        states = model.encode_question(*asked)[:, : int(asked[2].sum())]  # real tokens only
        logits = model.text_decoder(input_ids=ids[None], encoder_hidden_states=states).logits[0]
        expected.append(F.cross_entropy(logits[:-1], ids[1:], reduction="sum", label_smoothing=0.1))
    torch.testing.assert_close(out.answer_losses, torch.stack(expected))
    torch.testing.assert_close(out.loss, (torch.stack(expected) * batch["answer_weights"]).sum() / 3)


@torch.no_grad()
def test_by_default_each_question_has_one_answer_of_weight_1():
    model, batch = vqa_model(), questions()
    del batch["answer_weights"], batch["answers_per_question"]
    batch |= {name: batch[name][1:] for name in ("answer_ids", "answer_mask")}
    out = model(**batch)
    torch.testing.assert_close(out.loss, out.answer_losses.mean())


@torch.no_grad()
def test_padding_changes_nothing_neither_of_questions_nor_of_answers():
    model, batch, listed = vqa_model(), questions(), candidates()
    longer = {name: F.pad(value, (0, 3)) if name.endswith(("ids", "mask")) else value for name, value in batch.items()}
    longer["input_ids"][longer["attention_mask"] == 0] = 9
    longer["answer_ids"][longer["answer_mask"] == 0] = 9
    torch.testing.assert_close(model(**longer).answer_losses, model(**batch).answer_losses)
    short = model.rank_answers(*(batch[name] for name in ASKED), **listed)
    padded = {name: F.pad(value, (0, 2)) for name, value in listed.items()}
    long = model.rank_answers(*(longer[name] for name in ASKED), **padded)
    assert torch.equal(short.indices, long.indices)
    torch.testing.assert_close(short.scores, long.scores)
    real = {**longer, "attention_mask": torch.ones_like(longer["attention_mask"])}
    assert not torch.allclose(model(**real).answer_losses, model(**batch).answer_losses, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 4, 9, 128])
@pytest.mark.parametrize("rows", [1, 10, 512])
def test_ranking_against_candidates_one_by_one(monkeypatch, k, rows):
    monkeypatch.setattr("multiflow.families.answers.ROWS", rows)
    model, batch, listed = vqa_model(), questions(), candidates()
    found = model.rank_answers(*(batch[name] for name in ASKED), **listed, k=k)
    ids, mask = listed["candidate_ids"], listed["candidate_mask"]
    assert found.indices.shape == (3, min(k, 9))
    for question in range(3):
        asked = {name: batch[name][question].expand(9, *batch[name].shape[1:]) for name in ASKED}
        scores = -model(**asked, answer_ids=ids, answer_mask=mask).answer_losses
        states = model.encode_question(*(batch[name][question, None] for name in ASKED))
        states = states[:, : int(batch["attention_mask"][question].sum())]
        start = torch.tensor([[model.config.bos_token_id]])
        first = model.text_decoder(input_ids=start, encoder_hidden_states=states).logits[0, 0].softmax(0)
        order = sorted(range(9), key=lambda i: (-first[ids[i, 1]].item(), -i))[:k]
        order.sort(key=lambda i: (-scores[i].item(), i))
        assert found.indices[question].tolist() == order
        torch.testing.assert_close(found.scores[question], scores[order])


@torch.no_grad()
def test_first_tokens_are_set_and_the_batch_is_left_alone():
    model, batch = vqa_model(), questions()
    before = copy.deepcopy(batch)
    marked = copy.deepcopy(batch)
    marked["input_ids"][:, 0] = model.config.enc_token_id
    marked["answer_ids"][:, 0] = model.config.bos_token_id
    assert torch.equal(model(**batch).loss, model(**marked).loss)
    assert all(torch.equal(value, before[name]) for name, value in batch.items())


@torch.no_grad()
def test_bfloat16():
    exact, model = vqa_model(), vqa_model().bfloat16()
    torch.testing.assert_close(model(**questions()).loss, exact(**questions()).loss, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_ids": None}, "the batch has no 'answer_ids'; BLIP needs answer_ids and answer_mask"),
        ({"answer_mask": None}, "the batch has no 'answer_mask'"),
        ({"input_ids": None}, "the batch has no 'input_ids'"),
        ({"answer_mask": torch.ones(4, 6)}, r"answer_mask has shape \(4, 6\) and answer_ids \(4, 5\); pad both"),
        ({"answer_weights": torch.ones(3)}, r"answer_weights has shape \(3,\); give one weight for each of 4"),
        (
            {"answers_per_question": None},
            r"4 answers were given to 3 questions, and answers_per_question is None",
        ),
        ({"answers_per_question": torch.tensor([2, 1, 2])}, r"answers_per_question is \[2, 1, 2\]"),
        (
            dict.fromkeys(("answer_ids", "answer_mask"), torch.ones(4, 17, dtype=torch.long)),
            r"answer_ids has shape \(4, 17\); this model takes \(answers, tokens\), from 2 to 16 tokens",
        ),
    ],
)
def test_answers_that_do_not_fit(change, message):
    with pytest.raises(MultiflowError, match=message):
        vqa_model()(**(questions() | change))


def test_the_rates_of_drop_path_come_back(tmp_path):
    vqa_model(drop_path=0.25).save_pretrained(tmp_path)
    assert [layer.rate for layer in load_model(tmp_path).vision_model.encoder.layers] == [0.0, 0.25]
