from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from multiflow.cli.console import EVALUATION_FILE
from multiflow.cli.evaluate import say_what_is_left_out
from multiflow.families.opening import load_model
from multiflow.tasks.task_model import task_model
from multiflow.worlds.shapes.models import shapes_tokenizer
from tests.cli.conftest import Run
from tests.cli.test_show import cells

FAMILIES = {"xvlm": "tiny", "blip": "tiny_blip"}


@pytest.fixture(params=list(FAMILIES))
def pretrained(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(FAMILIES[request.param])


def fine_tuned(pretrained: Path, task: str, folder: Path) -> Path:
    task_model(load_model(pretrained), task).save_pretrained(folder)
    shapes_tokenizer("blip" if "blip" in pretrained.name else "xvlm").save_pretrained(folder)
    return folder


def figures_of(out: str) -> dict[str, float]:
    return {row[0]: float(row[1]) for row in cells(out) if len(row) == 2 and row[1] != "%"}


def test_zero_shot_retrieval(run: Run, pretrained: Path, world: Path) -> None:
    ran = run("evaluate", "retrieval", pretrained, "--data", world / "coco", "--save", "out", "--batch-size", 3)
    assert ran.code == 0, ran.err
    assert re.search(r"retrieval (\d+)/\1 ", ran.err)
    written = json.loads(Path("out", EVALUATION_FILE).read_text())
    assert (written["items"], written["skipped"], written["settings"]["split"]) == (4, 0, "test")
    printed = figures_of(ran.out)
    assert printed == {name: pytest.approx(value, abs=0.006) for name, value in written["figures"].items()}
    assert {"TR@1", "IR@10", "mean recall", "ITC TR@1"} <= set(printed)
    assert Path("out", "retrieval.json").is_file()


def test_a_model_for_questions(run: Run, pretrained: Path, world: Path, tmp_path: Path) -> None:
    model = fine_tuned(pretrained, "vqa", tmp_path / "model")
    args = ["evaluate", "vqa", model, "--data", world / "vqa", "--split", "val", "--save", "out"]
    ran = run(*args)
    assert ran.code == 0, ran.err
    assert set(figures_of(ran.out)) == {"accuracy", "listed"}
    assert ran.err.count("warning: ") == 1
    assert re.search(
        r"warning: 50 of 200 answers in .*_val2014_.* \(25.0%\), .* are not among the .* to choose from", ran.err
    )
    said = json.loads(Path("out", "vqa_results.json").read_text())
    assert len(said) == 20
    assert "already holds a finished run" in run(*args).error


def test_captions(run: Run, pretrained: Path, world: Path, tmp_path: Path) -> None:
    model = fine_tuned(pretrained, "captioning", tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiflow.tasks.captioning.task.tokenizer_kind", lambda metrics: "words")
        ran = run("evaluate", "captioning", model, "--data", world / "coco", "--metrics", "CIDEr", "--beams", 1,
                  "--save", "out")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "CIDEr (words)" in ran.out
    assert len(json.loads(Path("out", "captions.json").read_text())) == 4


def test_caption_metrics_that_cannot_be_had_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for missing, said in (({"SPICE": "no jar"}, "multiflow: SPICE is left out: no jar\n"), ({}, "")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("multiflow.cli.evaluate.missing_caption_metrics", lambda missing=missing: missing)
            say_what_is_left_out()
        assert capsys.readouterr().err == said


def test_a_pretrained_blip_captions_as_it_is_and_an_xvlm_does_not(
    run: Run, tiny: Path, tiny_blip: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiflow.tasks.captioning.task.tokenizer_kind", lambda metrics: "words")
    words = ("--data", world / "coco", "--limit", 1, "--metrics", "BLEU-1")
    assert run("evaluate", "captioning", tiny_blip, *words).code == 0
    said = run("evaluate", "captioning", tiny, *words).error
    assert "is of type 'xvlm', and task 'captioning'" in said
    assert "xvlm-captioning" in said
    assert "'multiflow finetune captioning'" in said


def test_the_bundled_digits(run: Run) -> None:
    assert run("digits", "d", "--images-only").code == 0
    ran = run("evaluate", "classification", "vit-digits", "--data", "d/images", "--limit", 40)
    assert ran.code == 0, ran.err
    assert figures_of(ran.out)["top-1"] > 90


def test_missing_images_stop_it_before_the_model_is_loaded(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    for part in ("coco", "images"):
        shutil.copytree(world / part, tmp_path / "w" / part)
    held = json.loads((tmp_path / "w" / "coco" / "dataset_coco.json").read_text())["images"]
    name = next(image["filename"] for image in held if image["split"] == "test")
    (tmp_path / "w" / "images" / "test2015" / name).unlink()
    words = ("evaluate", "retrieval", tiny, "--data", tmp_path / "w" / "coco")
    error = run(*words).error
    assert f"1 of 4 items of '{tmp_path}/w/coco/dataset_coco.json'" in error
    assert f"{name} (no such" in error
    ran = run(*words, "--skip-missing")
    assert ran.code == 0
    assert f"left out: 1 item, such as {name}" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("retreival", "xvlm-shapes", "--data", "x"), "unknown task 'retreival'; known: .*did you mean 'retrieval'"),
        (("retrieval", "xvlm-shapes", "--data", "x", "--limit", 0), "--limit 0 was given; expected at least 1"),
        (("retrieval", "xvlm-shapes", "--data", "x"), "no data at 'x'"),
        (("retrieval", "xvlm-shapes"), "--data"),
        (("retreival", "xvlm-shapes"), "did you mean 'retrieval'"),
        (("retrieval", "xvlm-shapes", "--data", "x", "--device", "gpu"), "unknown device 'gpu'"),
    ],
)
def test_bad_input(run: Run, words: tuple[object, ...], said: str) -> None:
    assert re.search(said, run("evaluate", *words).error)
