"""What comes from outside the package: a task in one folder, used by its name from Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import multiflow as mf
from multiflow.base.registry import import_modules
from multiflow.tasks.task import TASKS
from multiflow.training.finetune import finetune
from multiflow.training.settings import FinetuneSettings
from multiflow.worlds.digits.data import write_digits
from tests.conftest import Run

FOLDERS = Path(__file__).parent / "extending"
PARITY = FOLDERS / "parity"
FIGURES = {"mean of even and odd", "even", "odd"}
PACKAGE = Path(mf.__file__).parent


@pytest.fixture(scope="module")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_the_folders_lie_outside_the_package() -> None:
    assert not FOLDERS.is_relative_to(PACKAGE)
    assert not any(folder.name in path.read_text() for folder in (PARITY,) for path in PACKAGE.rglob("*.py"))


def test_a_task_in_a_folder_from_python(digit_images: Path, tmp_path: Path) -> None:
    import_modules([str(PARITY)])
    task, vit = TASKS["parity"], mf.load_model("vit-digits")
    masks = mf.prune(vit, "magnitude", 0.5).masks[0.5]
    settings = FinetuneSettings(str(digit_images), preset="quick", precision="fp32", device="cpu")
    best = finetune("parity", vit, masks, settings, tmp_path / "run")
    assert best["mean of even and odd"] > 80
    stored = mf.load_model(tmp_path / "run" / "model")
    assert stored.config.id2label == {0: "even", 1: "odd"}
    figures = task.evaluate(stored, None, task.open(digit_images, "test", limit=60))
    assert set(figures) == FIGURES
    assert figures == {name: value for name, value in best.items() if name != "step"}
    with pytest.raises(mf.MultiflowError, match="'xvlm' cannot do task 'parity'"):
        mf.task_model(mf.load_model("xvlm-shapes"), "parity")


def test_a_task_in_a_folder_from_the_command_line(run: Run, digit_images: Path) -> None:
    words = ("vit-digits", "--data", digit_images, "--preset", "quick", "--steps", 2, "--device", "cpu")
    assert run("finetune", "parity", *words, "--out", "run", "--modules", PARITY).code == 0
    data = ("--data", digit_images, "--limit", 20, "--modules", PARITY, "--save", "out")
    ran = run("evaluate", "parity", "run/model", *data)
    assert ran.code == 0, ran.err
    assert "mean of even and odd" in ran.out
    assert set(json.loads(Path("out/evaluation.json").read_text())["figures"]) == {
        "mean of even and odd",
        "even",
        "odd",
    }
