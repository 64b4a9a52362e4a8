"""Transcription, from Python and from the command line."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.opening import load_preprocessing
from multiflow.tasks.task import TASKS
from tests.families.automatic import speech
from tests.families.automatic.speech import write_tones

pytest.importorskip("soundfile")
SAID = {"a.wav": "abc", "b.wav": "hello there", "c.flac": "yes"}
TASK = TASKS["transcription"]


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), SAID)


@pytest.fixture(scope="module", params=["whisper", "ctc", "speech_to_text", "moonshine"])
def heard(request, tmp_path_factory):
    torch.manual_seed(0)
    place = getattr(speech, request.param)(tmp_path_factory.mktemp("model") / request.param)
    model = mf.load_model(place)
    return place, model, load_preprocessing(None, str(place), model).tokenizer


def test_every_clip_is_written_and_counted(heard, tones):
    _, model, reader = heard
    data = TASK.open(str(tones), "all")
    done = []
    figures = TASK.evaluate(model, reader, data, batch_size=2, max_new_tokens=5, progress=lambda *at: done.append(at))
    assert done == [(2, 3), (3, 3)]
    assert set(figures) == {"word accuracy", "WER", "CER"}
    assert figures["word accuracy"] == pytest.approx(100 - figures["WER"])
    assert sum(figures.each) / 3 == pytest.approx(figures["word accuracy"])
    again = TASK.evaluate(model, reader, data, batch_size=2, max_new_tokens=5)
    assert again.said == figures.said
    assert len(again.said) == 3


def test_what_a_model_of_letters_writes_is_its_likeliest_letters(heard, tones):
    place, model, reader = heard
    if place.name != "ctc":
        pytest.skip("generates")
    data = TASK.open(str(tones), "all")
    batch = reader.sounds([data[i].sound for i in range(3)])
    expected = reader.tokenizer.batch_decode(model.eval()(**batch).logits.argmax(-1), skip_special_tokens=True)
    figures = TASK.evaluate(model, reader, data, batch_size=3)
    assert list(figures.said) == [text.strip() for text in expected]


def test_a_model_that_writes_what_is_said_has_no_errors(heard, tones, monkeypatch):
    _, model, reader = heard
    monkeypatch.setattr(type(reader), "written", lambda self, ids: list(SAID.values())[: len(ids)])
    figures = TASK.evaluate(model, reader, TASK.open(str(tones), "all"), max_new_tokens=2)
    assert (figures["WER"], figures["CER"], figures["word accuracy"]) == (0, 0, 100)
    assert figures.each == pytest.approx((100, 100, 100))


def test_batches_to_train_on_are_a_function_of_their_position(heard, tones):
    _, model, reader = heard
    data = TASK.open(str(tones), "all")
    inputs = TASK.inputs(model, reader, seed=3)
    one, other = (TASK.batch(data, inputs, 2, 1) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.isfinite(TASK.loss(model, one, 0)[0])


def test_the_command_line_evaluates_prunes_and_evaluates_again(heard, tones, tmp_path, run):
    place = heard[0]
    if place.name != "whisper":
        pytest.skip("one kind is enough")
    more = ["--data", str(tones), "--split", "all", "--max-new-tokens", "4", "--batch-size", "2"]
    dense = run("evaluate", "transcription", str(place), *more, "--save", str(tmp_path / "dense"))
    assert dense.code == 0
    assert "WER" in dense.out
    rows = list(csv.reader((tmp_path / "dense" / "transcripts.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["clip", "said", "written", "errors", "words"]
    assert {row[0]: row[1] for row in rows[1:]} == SAID
    pruned = run(
        "prune",
        str(place),
        "--data",
        str(tones),
        "--method",
        "wanda",
        "--sparsity",
        "0.5",
        "--out",
        str(tmp_path / "p"),
    )
    assert pruned.code == 0
    (mask,) = (tmp_path / "p").glob("*.safetensors")
    sparse = run(
        "evaluate", "transcription", str(place), *more, "--mask", str(mask), "--dense", str(tmp_path / "dense")
    )
    assert sparse.code == 0
    assert "loyalty" in sparse.out
    assert json.loads((tmp_path / "dense" / "evaluation.json").read_text())["task"] == "transcription"


def test_a_clip_that_cannot_be_heard_stops_the_evaluation_or_is_left_out(heard, tmp_path):
    _, model, reader = heard
    write_tones(tmp_path, SAID)
    (tmp_path / "b.wav").write_bytes(b"")
    data = TASK.open(str(tmp_path), "all")
    with pytest.raises(MultiflowError, match=r"b\.wav"):
        TASK.evaluate(model, reader, data, max_new_tokens=2)
    rest = TASK.open(str(tmp_path), "all", skip_missing=True)
    assert [skip.key for skip in rest.skipped] == ["b.wav"]
    assert len(TASK.evaluate(model, reader, rest, max_new_tokens=2).said) == 2


def test_a_clip_without_transcript_is_refused_or_left_out(tmp_path):
    write_tones(tmp_path, SAID | {"b.wav": ""})
    with pytest.raises(MultiflowError, match="no transcript"):
        TASK.open(str(tmp_path), "all")
    assert len(TASK.open(str(tmp_path), "all", skip_missing=True)) == 2


def test_models_that_do_not_listen_are_refused(vlm, tones, run):
    ran = run("evaluate", "transcription", str(vlm("clip")), "--data", str(tones), "--split", "all")
    assert ran.code == 2
    assert "Whisper" in ran.err
