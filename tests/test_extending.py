"""What comes from outside the package: a pruner in one file, a task in one folder, from Python and the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import multiflow as mf
from multiflow.base.registry import import_modules
from multiflow.tasks.task import TASKS
from multiflow.training.finetune import finetune
from multiflow.training.settings import Finetuning
from multiflow.worlds.digits.data import write_digits
from tests.conftest import Run
from tests.small import ADAPTER, towers_batches, two_towers

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
    settings = Finetuning(str(digit_images), preset="quick", precision="fp32", device="cpu")
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


def test_a_pruner_in_a_file_from_python() -> None:
    import_modules([str(FOLDERS / "norm_power.py")])
    model, batches = two_towers(), towers_batches()
    masks = mf.prune(model, "norm_power", 0.5, batches, adapter=ADAPTER, power=1.0).masks[0.5]
    assert masks == mf.prune(model, "wanda", 0.5, batches, adapter=ADAPTER, pattern="unstructured").masks[0.5]
    stepwise = mf.prune(model, "iter_norm_power", 0.5, batches, adapter=ADAPTER, batches_per_step=2)
    assert stepwise.settings["hyper"] == {"power": 0.5, "steps": 2, "batches_per_step": 2, "schedule": "exp"}


def test_an_allocation_looks_at_a_statistic_that_the_pruner_does_not_need() -> None:
    import_modules([str(FOLDERS / "norm_power.py")])
    model, batches = two_towers(), towers_batches()
    options = {"adapter": ADAPTER, "allocation": sys.modules["norm_power"].quiet_first}
    result = mf.prune(model, "magnitude", 0.5, batches, **options)
    norms = {name: float(result.stats["input_norm"][name].mean()) for name in result.masks[0.5]}
    loudest = max(norms, key=norms.__getitem__)
    assert result.masks[0.5].sparsity == 0.5
    assert result.masks[0.5].dropped(loudest) == 0
    assert mf.prune(model, "magnitude", 0.5, result.stats, **options).masks == result.masks
    with pytest.raises(mf.MultiflowError, match="needs calibration data"):
        mf.prune(model, "magnitude", 0.5, **options)
    with pytest.raises(mf.MultiflowError, match="'2:4' fixes the budget of every layer"):
        mf.prune(model, "magnitude", 0.5, batches, pattern="2:4", **options)
    with pytest.raises(mf.MultiflowError, match="'quiet_first' needs input_norm of the dense model, but pruner 'tamt'"):
        mf.prune(model, "tamt", 0.5, batches, **options)


def test_a_pruner_in_a_file_from_the_command_line(run: Run, tiny: Path, digit_images: Path) -> None:
    words = ("vit-digits", "--data", digit_images, "--batches", 2, "--batch-size", 8, "--sparsity", 0.5)
    given = ("--method", "norm_power", "--modules", FOLDERS / "norm_power.py")
    assert run("prune", *words, *given, "--set", "power=1", "--out", "mine").code == 0
    assert run("prune", *words, "--method", "wanda", "--pattern", "unstructured", "--out", "wanda").code == 0
    assert mf.Result.load("mine").masks == mf.Result.load("wanda").masks
    assert "has no hyper-parameter 'pwer'; it has: power" in run("prune", *words, *given, "--set", "pwer=1").error
    error = run("prune", *words, *given, "--set", "power=much").error
    assert "--set power='much' of pruner 'norm_power' is a str; expected a finite number" in error
