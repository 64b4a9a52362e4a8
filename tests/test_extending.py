"""What comes from outside the package: a pruner in one file, a task or a family in one folder.

Each is used by its name from Python and from the command line. And how much of the package knows of a family of ours.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

import multiflow as mf
from multiflow.base.registry import import_modules
from multiflow.families import FAMILIES
from multiflow.tasks.task import TASKS
from multiflow.training.finetune import finetune
from multiflow.training.settings import Finetuning
from multiflow.worlds.digits.vit import write_digits
from tests.conftest import Run
from tests.house import tree
from tests.small import ADAPTER, towers_batches, two_towers

FOLDERS = Path(__file__).parent / "extending"
PARITY, TILES = FOLDERS / "parity", FOLDERS / "tiles"
FIGURES = {"mean of even and odd", "even", "odd"}
PACKAGE = Path(mf.__file__).parent


@pytest.fixture(scope="module")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_the_folders_lie_outside_the_package() -> None:
    assert not FOLDERS.is_relative_to(PACKAGE)
    names = [f'"{folder.name}"' for folder in (PARITY, TILES)]
    assert not any(name in path.read_text() for name in names for path in PACKAGE.rglob("*.py"))


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
    with pytest.raises(mf.MultiflowError, match="'quiet_first' needs input_norm .* 'tamt'"):
        mf.prune(model, "tamt", 0.5, batches, **options)


def test_a_pruner_in_a_file_from_the_command_line(run: Run, tiny: Path, digit_images: Path) -> None:
    words = ("vit-digits", "--data", digit_images, "--batches", 2, "--batch-size", 8, "--sparsity", 0.5)
    given = ("--method", "norm_power", "--modules", FOLDERS / "norm_power.py")
    assert run("prune", *words, *given, "--set", "power=1", "--out", "mine").code == 0
    assert run("prune", *words, "--method", "wanda", "--pattern", "unstructured", "--out", "wanda").code == 0
    assert mf.Result.load("mine").masks == mf.Result.load("wanda").masks
    assert "has no hyper-parameter 'pwer'; it has: power" in run("prune", *words, *given, "--set", "pwer=1").error
    error = run("prune", *words, *given, "--set", "power=much").error
    assert "--set power='much' of pruner 'norm_power'" in error


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Folder of a small model of the family from outside, written without the family."""
    import_modules([str(TILES / "model.py")])
    classes = sys.modules.pop("model")
    torch.manual_seed(0)
    classes.TilesForClassification(classes.TilesConfig(num_labels=10)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_family_in_a_folder_from_python(digit_images: Path, tiles: Path) -> None:
    import_modules([str(TILES)])
    assert "tiles.model" not in sys.modules  # its parts are imported when they are asked for
    model = mf.load_model(tiles)
    assert type(model) is sys.modules["tiles.model"].TilesForClassification
    assert list(mf.adapter_for(model).layout(model)) == ["layers.0", "layers.1"]
    batches = mf.calibration_batches(model, str(digit_images), batches=2, batch_size=8)
    for pruner in ("wanda", "snip"):
        result = mf.prune(model, pruner, 0.5, batches)
        assert result.masks[0.5].sparsity == 0.5
    task = mf.task_model(model, "classification", result.masks[0.5], classes=3)
    assert ((task.layers[0].weight == 0) == ~result.masks[0.5]["layers.0"]).all()
    with pytest.raises(mf.MultiflowError, match="'tiles' cannot do task 'vqa'.*; it can do classification"):
        mf.task_model(model, "vqa")


def test_a_family_in_a_folder_from_the_command_line(run: Run, digit_images: Path, tiles: Path) -> None:
    assert "cannot load folder 'model'" in run("show", "model").error
    more = ("--modules", TILES)
    data = ("--data", digit_images)
    assert run("prune", "model", *data, "--sparsity", 0.5, "--out", "pruned", "--batches", 2, *more).code == 0
    assert "family tiles" in run("show", "model", *more).out
    assert run("apply", "model", "pruned/mask-0.5.safetensors", "--out", "sparse", *more).code == 0
    words = ("--preset", "quick", "--steps", 2, "--device", "cpu", "--mask", "pruned/mask-0.5.safetensors")
    ran = run("finetune", "classification", "model", *data, *words, "--out", "run", *more, "--val-split", "test")
    assert ran.code == 0, ran.err
    ran = run("evaluate", "classification", "run/model", *data, "--limit", 20, *more)
    assert ran.code == 0, ran.err
    assert "top-1" in ran.out


def mentions(path: Path, folder: str, names: set[str]) -> list[int]:
    """Lines of a file that import from the folder of a family, or hold its name or a type of its models as a string."""
    found = []
    for node in ast.walk(tree(path)):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        home = f"multiflow.families.{folder}"
        if text in names or home in text or any(name == home or name.startswith(f"{home}.") for name in imported):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.models])
def test_a_family_of_ours_is_one_folder_and_at_most_one_line_elsewhere(name: str) -> None:
    family = FAMILIES[name]
    folder = family.home.rpartition(".")[2]
    others = [PACKAGE / "families" / other.home.rpartition(".")[2] for other in FAMILIES.values()]
    places = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.is_relative_to(PACKAGE / "families" / folder):
            alien = any(path.is_relative_to(place) for place in others)  # their configs may use a word in another sense
            found = mentions(path, folder, set() if alien else {name, *family.models})
            places += [f"{path.relative_to(PACKAGE)}:{line}" for line in found]
    assert len(places) <= 1, places
