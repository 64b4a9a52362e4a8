from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

import multiflow as mf
from multiflow.cli.prune import FREE_TO_CHANGE, PruneSettings, check
from multiflow.cli.settings import run_settings
from multiflow.data import Batches, Inputs, load_tokenizer, open_data
from multiflow.families.opening import load_model
from tests.cli.conftest import Run, files


def test_masks_are_those_of_the_library(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    ran = run("prune", tiny, "--data", pairs, "--batches", 3, "--batch-size", 4, "--seed", 5, "--out", "out")
    assert ran.code == 0
    assert files(tmp_path) == [
        f"out/{name}"
        for name in ("mask-0.63.safetensors", "mask-0.75.safetensors", "mask-0.9.safetensors", "result.json")
    ]
    model = load_model(tiny)
    inputs = Inputs(load_tokenizer(tiny), 32, 8)
    batches = Batches(open_data(pairs), inputs, batch_size=4, limit=3, seed=5)
    expected = mf.prune(model, "multiflow", batches=batches, seed=5)
    for sparsity, masks in expected.masks.items():
        assert mf.Masks.load(f"out/mask-{sparsity:g}.safetensors") == masks


def test_what_is_printed_and_written(run: Run, tiny: Path, pairs: Path) -> None:
    ran = run("prune", tiny, "--data", pairs, "--sparsity", 0.5, "--batches", 2, "--batch-size", 4, "--out", "out")
    result = json.loads(Path("out/result.json").read_text())
    assert result["settings"]["method"] == "multiflow"
    assert result["settings"]["batches"] == 2
    assert result["data"] | {"source": ""} == {
        "source": "", "kind": "pairs", "samples": 8, "looked_at": 8, "skipped": 0, "skips": []
    }  # fmt: skip
    assert result["run"] == {
        "model": str(tiny), "data": str(pairs), "sparsity": [0.5], "batches": 2, "batch_size": 4
    }  # fmt: skip
    masks = mf.Masks.load("out/mask-0.5.safetensors")
    assert result["masks"]["0.5"]["sparsity"] == masks.sparsity
    assert "calibrated on 2 batches, 8 pairs" in ran.out
    assert "mask-0.5.safetensors" in ran.out
    assert "vision" in ran.out
    assert "text" in ran.out
    assert "fusion" in ran.out
    assert "50.00 %" in ran.out
    assert "calibrate 2/2 batches" in ran.err
    assert "batches/s, ETA 0:00" in ran.err


def test_data_free_methods_need_no_data_and_the_folder_is_named_after_the_settings(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5).code == 0
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.6).code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("prune-magnitude-") for name in names)
    assert "already holds a finished run" in run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5).error
    result = json.loads((tmp_path / "runs" / names[0] / "result.json").read_text())
    assert result["data"] is None


def test_regions_are_calibrated_on_too(run: Run, tiny: Path, world: Path) -> None:
    ran = run("prune", tiny, "--data", world / "pretrain", "--batches", 2, "--batch-size", 4, "--out", "out")
    assert ran.code == 0
    assert "2 batches, 16 pairs" in ran.out
    assert "regions" in json.loads(Path("out/result.json").read_text())["data"]["source"]


def test_pattern_allocation_and_hyper_parameters(run: Run, tiny: Path, pairs: Path) -> None:
    assert run("prune", tiny, "--method", "magnitude", "--pattern", "2:4", "--out", "a").code == 0
    masks = mf.Masks.load("a/mask-0.5.safetensors")
    name = next(iter(masks))
    assert (masks[name].view(-1, 4).sum(1) == 2).all()
    options = ["--data", pairs, "--batches", 1, "--sparsity", 0.5, "--allocation", "global", "--set", "alpha=0.25"]
    assert run("prune", tiny, "--method", "ria", *options, "--out", "b").code == 0
    settings = json.loads(Path("b/result.json").read_text())["settings"]
    assert settings["allocation"] == "global"
    assert settings["hyper"] == {"alpha": 0.25}


def test_dtype_is_what_is_computed_in_and_the_masks_fit_the_weights_as_stored(
    run: Run, tiny: Path, pairs: Path
) -> None:
    options = ["--data", pairs, "--batches", 1, "--sparsity", 0.5]
    assert run("prune", tiny, *options, "--dtype", "bfloat16", "--out", "half").code == 0
    model = load_model(tiny)
    masks = mf.Masks.load("half/mask-0.5.safetensors")
    batches = Batches(open_data(pairs), Inputs(load_tokenizer(tiny), 32, 8), limit=1)
    assert masks == mf.prune(copy.deepcopy(model).to(torch.bfloat16), "multiflow", 0.5, batches).masks[0.5]
    masks.apply_(model)  # no warning


def test_the_bundled_model_makes_its_own_scenes(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("families.opening", "cli.prune"):
        monkeypatch.setattr(f"multiflow.{module}.bundled_models", lambda: {"xvlm-shapes": tiny})
    ran = run("prune", "xvlm-shapes", "--batches", 2, "--batch-size", 3, "--out", "out")
    assert ran.code == 0
    assert "2 batches, 6 pairs" in ran.out
    error = run("prune", "xvlm-shape", "--method", "magnitude").error
    assert "unknown model 'xvlm-shape'" in error
    assert error.endswith("did you mean 'xvlm-shapes'?")


def test_an_original_checkpoint(run: Run, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "xvlm"
    source = [golden / "weights.safetensors", "--family", "xvlm", "--config", golden / "config.json"]
    assert run("prune", *source, "--method", "magnitude", "--sparsity", 0.5, "--out", "out").code == 0
    assert mf.Masks.load("out/mask-0.5.safetensors").sparsity == pytest.approx(0.5, abs=1e-5)
    assert "family" in run("prune", source[0], "--method", "magnitude").error
    error = run("prune", source[0], "--family", "xvlmm", "--method", "magnitude").error
    assert "did you mean 'xvlm'?" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_run_settings_are_those_that_differ_from_their_defaults() -> None:
    def decisive(**given: object) -> dict[str, object]:
        return run_settings(PruneSettings("m", **given), FREE_TO_CHANGE)  # type: ignore[arg-type]

    assert decisive() == {"model": "m"}
    assert decisive(out="o", checkpoint_every=3, resume=True, device="cpu", workers=2) == {"model": "m"}
    assert decisive(seed=1, set=("a=1",)) == {"model": "m", "set": ("a=1",), "seed": 1}


def test_check_gives_the_pruner_and_all_its_hyper_parameters() -> None:
    asked = check(PruneSettings("m", data="d", method="ria"))
    assert asked.pruner.name == "ria"
    assert asked.hyper == {"alpha": 0.5}
    assert (asked.sparsities, asked.allocation.name) == ((0.63, 0.75, 0.9), "uniform")


def test_a_pruner_of_the_users_own(run: Run, tiny: Path) -> None:
    Path("mine.py").write_text(
        "import multiflow as mf\n\n@mf.scorer\ndef upside_down(weight, *, power=1.0):\n"
        '    """Largest magnitude."""\n    return -weight.abs() ** power\n'
    )
    command = ("prune", tiny, "--method", "upside_down", "--sparsity", 0.5, "--set", "power=2", "--out", "run")
    assert "unknown pruner 'upside_down'" in run(*command).error
    ran = run(*command, "--modules", "mine.py")
    assert ran.code == 0, ran.err
    model, masks = mf.load_model(tiny), mf.Masks.load("run/mask-0.5.safetensors")
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight.abs()
        assert not mask.any() or not (~mask).any() or weight[mask].max() <= weight[~mask].min()
    assert "module 'nine.py' cannot be imported" in run(*command, "--modules", "nine.py").error
