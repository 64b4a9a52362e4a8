from __future__ import annotations

import json
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.metrics import CAPTION_METRICS, caption_scores
from multiflow.tasks.captioning import task as captioning
from multiflow.tasks.captioning.task import PROMPT, RESULTS, tokenizer_kind, write_captions
from multiflow.tasks.inputs import Pixels
from multiflow.tasks.task import TASKS
from tests.tiny import TOKENIZER, tiny

TASK = TASKS["captioning"]
families = pytest.mark.parametrize("family", ["xvlm", "blip"])
NO_JAVA = {"CIDEr": "no java", "BLEU-1": "no java", "SPICE": "no java"}


@pytest.fixture(scope="module")
def data(world):
    return TASK.open(world / "coco", "test")


@families
def test_the_prompt_comes_first_and_does_not_count(data, family):
    model = tiny(family, "captioning")
    batch = TASK.batch(data, TASK.inputs(model, TOKENIZER), 3, 0)
    prompt = TOKENIZER(PROMPT, add_special_tokens=False)["input_ids"]
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert ids[: 1 + len(prompt)].tolist() == [TOKENIZER.cls_token_id, *prompt]
        assert labels[: 1 + len(prompt)].tolist() == [-100] * (1 + len(prompt))
        length = int(mask.sum())
        assert labels[1 + len(prompt) : length].tolist() == ids[1 + len(prompt) : length].tolist()
        assert ids[length - 1] == TOKENIZER.sep_token_id
        assert (labels[length:] == -100).all()
    value, _ = TASK.loss(model, batch, 0)
    assert value.isfinite()


@families
def test_captions_do_not_depend_on_the_batch(data, family):
    model = tiny(family, "captioning")
    seen = []
    together = write_captions(model, TOKENIZER, data, batch_size=3, progress=lambda *x: seen.append(x))
    assert together == write_captions(model, TOKENIZER, data, batch_size=1)
    assert seen == [(3, 4), (4, 4)]
    assert [key for key, _ in together] == [item.key for item in data]


@families
def test_captions_are_what_generate_says_without_the_prompt(data, family):
    model = tiny(family, "captioning")
    said = write_captions(model, TOKENIZER, data, beams=1, shortest=6, longest=9)
    inputs = TASK.inputs(model, TOKENIZER)
    start = torch.tensor([TOKENIZER([PROMPT])["input_ids"][0][:-1]] * 4)
    found = model.generate(
        Pixels(data, inputs)[:],
        start,
        num_beams=1,
        min_length=6,
        max_length=9,
        eos_token_id=TOKENIZER.sep_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    assert [text for _, text in said] == [TOKENIZER.decode(row[4:], skip_special_tokens=True) for row in found]


class Parrot:
    """Says what it is told, a number for an image after the other."""

    def __init__(self, texts):
        self.texts, self.device, self.dtype, self.training = list(texts), torch.device("cpu"), torch.float32, False
        self.config = SimpleNamespace(
            model_type="xvlm-captioning", image_size=8, text={"max_position_embeddings": 40, "vocab_size": 999}
        )

    def eval(self):
        return self

    def modules(self):
        return [self]

    def generate(self, pixels, start, **options):
        said, self.texts = self.texts[: len(pixels)], self.texts[len(pixels) :]
        ids = TOKENIZER(said, padding=True, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([start, ids], dim=1)


def test_scores_are_those_of_the_captions(data, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning, "tokenizer_kind", lambda metrics: "words")
    said = ["a red star", *(several[1].replace(",", "") for several in data.texts[1:])]
    figures = TASK.evaluate(Parrot(said), TOKENIZER, data, batch_size=3, save=tmp_path, metrics=["CIDEr", "BLEU-4"])
    want = caption_scores(
        dict(enumerate(said)), dict(enumerate(data.texts)), metrics=["CIDEr", "BLEU-4"], tokenizer="words"
    )
    assert figures == want
    assert TASK.score(figures) == want["CIDEr (words)"]
    assert TASK.main_of(figures) == "CIDEr (words)"
    assert figures.each == want.each
    assert fmean(figures.each) == pytest.approx(want["CIDEr (words)"])
    assert figures.each[0] < min(figures.each[1:])  # in the order of the data: the first is no caption of its image
    written = json.loads((tmp_path / RESULTS).read_text())
    assert [entry["caption"] for entry in written] == said
    assert [entry["image_id"] for entry in written] == [12, 13, 14, 15]


@pytest.mark.parametrize(
    ("missing", "metrics", "said"),
    [
        ({}, ["CIDER"], "unknown caption metric 'CIDER'; known: .*did you mean 'CIDEr'"),
        ({"SPICE": "no jar"}, ["SPICE"], "SPICE cannot be computed: no jar"),
        (dict.fromkeys(CAPTION_METRICS, "not installed"), None, "BLEU-1 cannot be computed: not installed"),
        (dict.fromkeys(CAPTION_METRICS, "not installed"), ["CIDEr"], "CIDEr cannot be computed: not installed"),
    ],
)
def test_metrics_that_cannot_be_had_are_said_before_a_caption_is_written(data, monkeypatch, missing, metrics, said):
    monkeypatch.setattr(captioning, "missing_caption_metrics", lambda kind="ptb": missing)
    with pytest.raises(MultiflowError, match=said):
        TASK.check(data, data, metrics=metrics)
    with pytest.raises(MultiflowError, match=said):
        TASK.evaluate(None, TOKENIZER, data, metrics=metrics)


def test_what_goes_without_java_is_no_error(monkeypatch):
    rest = {"METEOR": "words", "SPICE": "words"}
    monkeypatch.setattr(captioning, "missing_caption_metrics", lambda kind="ptb": NO_JAVA if kind == "ptb" else rest)
    TASK.check(None, None, metrics=["CIDEr", "BLEU-1"])
    TASK.check(None, None)
    with pytest.raises(MultiflowError, match="SPICE cannot be computed: no java"):
        TASK.check(None, None, metrics=["SPICE"])


def test_without_java_there_are_figures_on_plain_words_and_a_warning(monkeypatch):
    monkeypatch.setattr(
        captioning, "missing_caption_metrics", lambda kind="ptb": NO_JAVA if kind == "ptb" else {"SPICE": "no java"}
    )
    with pytest.warns(UserWarning, match="CIDEr, BLEU-1, SPICE .*: no java"):
        assert tokenizer_kind(None) == "words"
    monkeypatch.setattr(captioning, "missing_caption_metrics", lambda kind="ptb": {"SPICE": "no jar"})
    assert tokenizer_kind(None) == "ptb"
    monkeypatch.setattr(captioning, "missing_caption_metrics", lambda kind="ptb": NO_JAVA)  # not installed
    assert tokenizer_kind(None) == "ptb"
