from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from multiflow.base.progress import Progress
from multiflow.cli import COMMANDS
from multiflow.cli.pretrain import PretrainSettings
from multiflow.cli.settings import parse
from multiflow.worlds.shapes import models
from multiflow.worlds.shapes import pretrain as task
from tests.cli.conftest import Run


def test_every_setting_of_the_task_is_an_option(run: Run) -> None:
    out = run("pretrain", "--help").out
    for field in fields(models.Pretraining):
        assert f"--{field.name.replace('_', '-')} " in out


def test_options_reach_the_task() -> None:
    args = ["out", "--steps", "7", "--lr", "1e-4", "--precision", "fp32", "--resume", "--family", "blip"]
    args += ["--text-mlp", "64"]
    assert parse(PretrainSettings, COMMANDS["pretrain"], args) == PretrainSettings(
        "out", True, models.Pretraining("blip", steps=7, lr=1e-4, precision="fp32", text_mlp=64)
    )


def test_help_says_which_sizes_are_those_of_the_family(run: Run) -> None:
    text = " ".join(run("pretrain", "--help").out.replace("│", " ").split())
    assert "--family F" in text
    assert text.count("(default: the family's)") == 3


def test_the_task_is_run_and_its_figures_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrain(settings: models.Pretraining, out_dir: Path, *, resume: bool, progress: Any) -> dict[str, float]:
        assert (settings.steps, out_dir, resume) == (7, Path("out"), False)
        progress(Progress("joint", 7, 7, 150.0, 0.0, {"loss": 1.5}))
        return {"tr1": 95.25, "ir1": 3.0}

    monkeypatch.setattr(task, "pretrain", pretrain)
    ran = run("pretrain", "out", "--steps", 7)
    assert ran.code == 0
    assert ["tr1", "95.2"] in [line.split() for line in ran.out.splitlines()]
    assert "joint 7/7 | 150 samples/s, ETA 0:00" in ran.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["out", "--steps", "few"], "--steps cannot take 'few'"),
        (["out", "--precision", "fp64"], "invalid choice 'fp64' for argument '--precision'"),
        (["out", "--step", "3"], "takes no option '--step'; did you mean '--steps'?"),
        (["out", "--steps", "-2"], "--steps -2 was given; expected at least 1"),
        (["out", "--test-scenes", "0"], "--test-scenes 0 was given; expected at least 1"),
        (["out", "--seed", "-1"], "--seed -1 was given; expected at least 0"),
        (["out", "--lr", "nan"], "--lr nan was given; expected a number of at least 0"),
        (["out", "--width", "33"], "vision.width is 33; it must be a multiple of vision.heads"),
        (["out", "--family", "blip", "--width", "33"], "vision.width is 33; it must be a multiple of vision.heads"),
        (["out", "--family", "vit"], "unknown family 'vit'; known: "),
        (["out", "--family", "dino"], "family 'dino' cannot be pretrained here"),
        (["out", "--text-layers", "0"], "--text-layers 0 was given; expected at least 1"),
        (["out", "--text-layers", "two"], "--text-layers"),
        (["out", "--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["file/below"], "file/below"),
        (["run", "--seed", "1"], "'run' already holds a run"),
        (["run", "--seed", "1", "--resume"], "run with other settings: "),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}")
    assert said in run("pretrain", *args).error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]
