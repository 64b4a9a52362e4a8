from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from multiflow.bench import pruning
from multiflow.bench.config import read_grid
from multiflow.bench.machine import git_revision
from multiflow.bench.records import Pruning, Results
from multiflow.pruning.plan import versions
from tests.bench.conftest import compute, config, write_config

NORM, MOMENT = ("multiflow", "wanda", "ria"), ("multiflow-refit", "lobs")


@pytest.fixture(scope="module")
def made(tiny: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder of results with the prunings of all pruners that look at inputs; the statistics of each pass."""
    folder, passes = tmp_path_factory.mktemp("bench"), []

    def calibrate(*given: Any, statistics: list[str], **options: Any) -> mf.Stats:
        passes.append(statistics)
        return mf.calibrate(*given, statistics=statistics, **options)

    tiers = [{"name": "1", "pruners": [*NORM, *MOMENT], "sparsities": [0.5, 0.75]}]
    path = write_config(folder, config(tiny, world, tiers=tiers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "calibrate", calibrate)
        assert all(cell.error is None for cell in compute(path, folder / "results"))
    return folder, passes


def prunings(folder: Path) -> dict[str, Pruning]:
    return {found.pruner: found for found in Results(folder / "results").prunings().values()}


def test_a_statistic_is_measured_once_for_all_pruners(made: tuple[Path, list[list[str]]]) -> None:
    folder, passes = made
    assert passes == [["input_norm"], ["input_moment"]]
    found = prunings(folder)
    for names in (NORM, MOMENT):
        assert len({found[name].calibration for name in names}) == 1
    assert len({pruning.pairs for pruning in found.values()}) == 1
    for pruning_ in found.values():
        assert pruning_.calibration > 0
        assert pruning_.selection > 0


@pytest.mark.parametrize("method", [*NORM, *MOMENT])
def test_shared_statistics_change_no_mask_and_no_weight(
    method: str, made: tuple[Path, list[list[str]]], tiny: Path
) -> None:
    folder, _ = made
    grid, _ = read_grid(folder / "grid.yaml")
    model = mf.load_model(tiny)
    alone = mf.prune(model, method, [0.5, 0.75], pruning.calibration_batches(grid.models["tiny"], model, 0))
    there = folder / "results" / "masks" / prunings(folder)[method].id
    for sparsity, masks in alone.masks.items():
        shared = mf.Masks.load(path := there / f"mask-{sparsity:g}.safetensors")
        assert shared == masks
        weights = pruning.changed_weights(path, shared)
        assert (weights is None) == (alone.weights is None)
        for name, weight in (weights or {}).items():
            assert torch.equal(weight, alone.weights[sparsity][name])


FIRST = Pruning("p", "m", "wanda", 0, 2.0, 0.5, 32, 100, [("l", "vision", 4)], {0.5: [2]})


@pytest.mark.parametrize(
    ("anew", "sparsities", "calibration", "selection", "there"),
    [
        (False, [0.75], 3.0, 0.75, [0.5, 0.75]),  # one pass for both
        (True, [0.75], 5.0, 0.75, [0.5, 0.75]),
        (True, [0.5], 3.0, 0.25, [0.5]),  # its masks were gone
        (True, [0.5, 0.75], 3.0, 0.25, [0.5, 0.75]),
    ],
)
def test_what_the_masks_of_all_sparsities_cost(
    anew: bool, sparsities: list[float], calibration: float, selection: float, there: list[float]
) -> None:
    zeros = {sparsity: [3] for sparsity in sparsities}
    new = replace(FIRST, calibration=3.0, selection=0.25, peak_memory=90, zeros=zeros, git="new")
    found = pruning.joined(FIRST, new, anew=anew)
    assert (found.calibration, found.selection, list(found.zeros), found.git) == (calibration, selection, there, "new")
    assert found.peak_memory == (90 if sparsities[0] == 0.5 else 100)
    both = replace(FIRST, zeros={0.5: [2], 0.75: [3]})
    again = pruning.joined(both, replace(new, zeros={0.5: [2]}), anew=anew)
    assert (again.selection, again.peak_memory, list(again.zeros)) == (0.5, 100, [0.5, 0.75])


def test_a_pruning_says_where_and_by_what_it_was_made(made: tuple[Path, list[list[str]]]) -> None:
    for found in prunings(made[0]).values():
        assert found.versions == versions()
        assert found.git == git_revision(made[0] / "results")
        assert "threads" in found.machine


def test_fitters_leave_no_checkpoint_of_their_own(made: tuple[Path, list[list[str]]]) -> None:
    assert not list((made[0] / "results").rglob("calibration*"))
    lines = (made[0] / "results" / "prunings.jsonl").read_text().splitlines()
    assert [json.loads(line)["pruner"] for line in lines] == [*NORM, *MOMENT]


def test_a_pruner_of_a_grid_may_be_recovered_and_its_budgets_searched(tiny: Path, world: Path, tmp_path: Path) -> None:
    recovery = {"epochs": 1, "lr": 0.005}
    pruners = {
        "plain": {"method": "magnitude-layer"},
        "recovered": {"method": "magnitude-layer", "recover": ["scale"], "recovery": recovery},
    }
    tiers = [{"name": "1", "pruners": list(pruners), "sparsities": [0.5, 0.75]}]
    path = write_config(tmp_path, config(tiny, world, tiers=tiers, pruners=pruners))
    assert [cell.error for cell in compute(path, tmp_path / "results")] == [None] * 4
    found, model = prunings(tmp_path), mf.load_model(tiny)
    assert found["recovered"].id != found["plain"].id
    assert found["recovered"].selection > found["plain"].selection
    grid, _ = read_grid(path)
    batches = pruning.calibration_batches(grid.models["tiny"], model, 0)
    for sparsity in (0.5, 0.75):
        there = tmp_path / "results" / "masks" / found["recovered"].id / f"mask-{sparsity:g}.safetensors"
        masks = mf.Masks.load(there)
        alone = mf.recover(model, mf.prune(model, "magnitude-layer", sparsity), sparsity, batches, "scale", **recovery)
        assert masks == alone.masks[sparsity]
        weights = pruning.changed_weights(there, masks)
        assert weights is not None
        assert all(torch.equal(value, weights[name]) for name, value in alone.weights[sparsity].items())


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"recover": ["block"]}, "unknown way of recovery 'block'"),
        ({"recover": ["blocks"], "recovery": {"rank": 2}}, "'rank'"),
    ],
)
def test_recovery_of_a_grid_is_checked_before_it_starts(entry, said, tiny: Path, world: Path, tmp_path: Path) -> None:
    tiers = [{"name": "1", "pruners": ["one"], "sparsities": [0.5]}]
    path = write_config(tmp_path, config(tiny, world, tiers=tiers, pruners={"one": {"method": "magnitude", **entry}}))
    with pytest.raises(mf.MultiflowError, match=said):
        compute(path, tmp_path / "results")
