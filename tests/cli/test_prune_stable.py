from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from multiflow.calibration import Doubling
from multiflow.data import Batches, Inputs, load_tokenizer, open_data
from multiflow.families.opening import load_model
from tests.cli.conftest import Run, files
from tests.cli.test_prune_resume import interrupt_at


@pytest.fixture
def options(tiny: Path, pairs: Path) -> list[Any]:
    """A run with twelve batches of two pairs."""
    return ["prune", tiny, "--data", pairs, "--batch-size", 2, "--sparsity", 0.5, 0.75, "--until-stable"]


@pytest.fixture
def curve(tiny: Path, pairs: Path) -> tuple[Doubling, ...]:
    """How its masks settle."""
    return mf.prune(load_model(tiny), "multiflow", [0.5, 0.75], made(tiny, pairs), until_stable=1.0).curve


def made(tiny: Path, pairs: Path, limit: int | None = None) -> Batches:
    return Batches(open_data(pairs), Inputs(load_tokenizer(tiny), 32, 8), batch_size=2, limit=limit)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.splitlines()]


def as_printed(curve: tuple[Doubling, ...]) -> list[list[str]]:
    return [
        [str(p.batches), str(p.before), str(p.samples), *(f"{100 * share:.3f} %" for share in p.agreement.values())]
        for p in curve
    ]


def test_it_stops_when_the_masks_are_stable(
    run: Run,
    tiny: Path,
    pairs: Path,
    options: list[Any],
    curve: tuple[Doubling, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [point.batches for point in curve] == [2, 4, 8, 12]
    least = [min(point.agreement.values()) for point in curve]
    assert max(least[:2]) < least[2]
    monkeypatch.setattr("multiflow.cli.prune.STABLE", least[2])
    ran = run(*options, "--out", "out")
    assert ran.code == 0
    expected = mf.prune(load_model(tiny), "multiflow", [0.5, 0.75], made(tiny, pairs, limit=8))
    for sparsity, masks in expected.masks.items():
        assert mf.Masks.load(f"out/mask-{sparsity}.safetensors") == masks
    result = json.loads(Path("out/result.json").read_text())
    assert result["stable"] is True
    assert [point["batches"] for point in result["curve"]] == [2, 4, 8]
    assert result["run"]["until_stable"] is True
    assert (result["settings"]["batches"], result["data"]["samples"], result["data"]["looked_at"]) == (8, 16, 16)
    assert "calibrated on 8 batches, 16 pairs" in ran.out
    rows = cells(ran.out)
    assert ["batches", "against", "pairs", "at 0.5", "at 0.75"] in rows
    assert all(row in rows for row in as_printed(curve[:3]))
    assert f"stable: at least {100 * least[2]:g} % agree at every sparsity" in ran.out


def test_data_that_end_before(run: Run, options: list[Any], curve: tuple[Doubling, ...]) -> None:
    ran = run(*options, "--out", "out")
    assert ran.code == 0
    assert min(curve[-2].agreement.values()) < 0.995
    rows = cells(ran.out)
    assert all(row in rows for row in as_printed(curve))
    assert "not stable: the data ended before" in ran.out
    assert json.loads(Path("out/result.json").read_text())["stable"] is False
    shown = run("show", "out").out
    assert ran.out.startswith(shown)
    assert ran.out.removeprefix(shown).startswith("next: multiflow apply")


def test_a_single_batch_has_nothing_to_compare_with(run: Run, options: list[Any]) -> None:
    ran = run(*options, "--batches", 1, "--out", "out")
    assert ran.code == 0
    assert "not stable: the data ended" in ran.out
    assert "against" not in ran.out


def test_a_stopped_run_goes_on_to_the_same_masks_and_curve(
    run: Run, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*options, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        assert run(*options, "--checkpoint-every", 5, "--out", "cut").code == 130
    assert files(Path("cut")) == ["calibration-half.safetensors", "calibration.safetensors", "run.json"]
    without = [option for option in options if option != "--until-stable"]
    assert "until_stable (True then, default now)" in run(*without, "--resume", "--out", "cut").error
    ran = run(*options, "--resume", "--out", "cut")
    assert ran.code == 0
    assert files(Path("cut")) == files(Path("whole"))
    for name in ("mask-0.5.safetensors", "mask-0.75.safetensors"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()
    whole, cut = (json.loads(Path(name, "result.json").read_text()) for name in ("whole", "cut"))
    for key in ("curve", "stable", "settings", "data"):
        assert cut[key] == whole[key]
