"""``kill -9`` at any moment, then ``--resume``: the masks, and weights, of a run that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from tests.cli.conftest import files
from tests.cli.kill_worker import CASES, kill_all
from tests.processes import LIMIT, forked


@pytest.fixture(scope="module")
def killed(tiny_blip: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the worker leaves."""
    folder = tmp_path_factory.mktemp("killed")
    forked(kill_all, tiny_blip, pairs, folder, limit=2 * LIMIT)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bits(killed: Path, case: str) -> None:
    names = [name for name in files(killed / f"{case}-whole") if name != "run.json"]
    assert set(names) <= set(files(killed / case))
    for sparsity in ("0.5", "0.75"):
        ours, whole = (mf.Masks.load(killed / at / f"mask-{sparsity}.safetensors") for at in (case, f"{case}-whole"))
        assert ours == whole
    for name in names:
        if name.startswith("weights"):
            ours, whole = (load_file(killed / at / name) for at in (case, f"{case}-whole"))
            assert ours.keys() == whole.keys()
            assert all(torch.equal(weight, whole[layer]) for layer, weight in ours.items())


@pytest.mark.parametrize("case", CASES)
def test_it_was_killed_indeed_and_not_only_before_it_had_begun(killed: Path, case: str) -> None:
    assert json.loads((killed / "killed.json").read_text())[case]["with a checkpoint"] >= 1
