from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from multiflow.cli import COMMANDS
from multiflow.cli.digits import DigitsSettings
from multiflow.cli.settings import parse
from multiflow.worlds.digits import vit as task
from tests.cli.conftest import Run


def test_every_setting_of_the_task_is_an_option(run: Run) -> None:
    out = run("digits", "--help").out
    for field in fields(task.DigitsTraining):
        assert f"--{field.name.replace('_', '-')} " in out


def test_options_reach_the_task() -> None:
    args = ["out", "--steps", "7", "--lr", "1e-4", "--resume"]
    assert parse(DigitsSettings, COMMANDS["digits"], args) == DigitsSettings(
        "out", resume=True, training=task.DigitsTraining(steps=7, lr=1e-4)
    )


def test_the_images_are_written_and_the_model_is_trained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(settings: task.DigitsTraining, out: Path, *, resume: bool, progress: Any) -> dict[str, float]:
        assert (settings.steps, out) == (7, Path("out"))
        resumed.append(resume)
        return {"accuracy": 97.25}

    resumed: list[bool] = []
    monkeypatch.setattr(task, "train_digits", train)
    for options in ([], ["--resume"]):
        ran = run("digits", "out", "--steps", 7, *options)
        assert ran.code == 0
        assert "97.2 % of the test images" in ran.out
    assert resumed == [False, True]
    assert len(list((tmp_path / "out" / "images").glob("train/*/*.png"))) == 1437
    assert "already holds" in run("digits", "out").error


def test_the_images_can_be_written_alone_and_calibrate_the_model(run: Run, tmp_path: Path) -> None:
    ran = run("digits", "out", "--images-only")
    assert ran.out == "images written to out/images, a folder a class\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]
    args = ["--data", "out/images/train", "--batches", 2, "--sparsity", 0.5, "--out", "pruned"]
    ran = run("prune", "vit-digits", *args)
    assert ran.code == 0, ran
    assert (tmp_path / "pruned" / "mask-0.5.safetensors").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["out", "--steps", "-2"], "--steps -2 was given; expected at least 1"),
        (["out", "--lr", "nan"], "--lr nan was given; expected a number of at least 0"),
        (["out", "--width", "50"], "width 50 and heads 3 were given; expected a multiple of the heads"),
        (["out", "--image-size", "18"], "image_size 18 and patch_size 4 were given; expected a multiple of the patch"),
        (["out", "--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["file/below"], "file/below"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    (tmp_path / "file").touch()
    assert said in run("digits", *args).error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
