"""Training in two processes against the same training in one: `spread_worker` runs once for all of these tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.training.loop import train
from multiflow.training.tracking import read_metrics
from tests.processes import fork_two
from tests.training import spread_worker
from tests.training.spread_worker import PLAIN, RUNS, batch, loss, make_masks, make_model, run

runs = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of what the two processes left."""
    folder = tmp_path_factory.mktemp("two")
    fork_two(spread_worker.main, folder)
    return folder


def found(folder, name, rank=0):
    return torch.load(folder / f"{name}-{rank}.pt", weights_only=True)


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@runs
def test_no_weight_is_revived_and_the_kept_ones_train(two, name):
    model = make_model()
    before, masks = model.state_dict(), make_masks(model)
    after = found(two, name)["whole"]
    for layer, mask in masks.items():
        weight = after[f"{layer}.weight"]
        assert not weight[~mask].any()
        assert not torch.signbit(weight[~mask]).any()
        assert (weight != before[f"{layer}.weight"])[mask].all()


@runs
def test_a_stopped_run_resumes_to_the_same_bits_in_both_processes(two, name):
    ours, theirs = (found(two, name, rank) for rank in (0, 1))
    assert same_bits(ours["whole"], ours["resumed"])
    assert same_bits(ours["whole"], theirs["whole"])
    assert same_bits(ours["whole"], theirs["resumed"])


@pytest.mark.parametrize(
    ("name", "accumulate"), [("adamw", 2), ("split", 2), ("accumulated", 4), ("split-accumulated", 4)]
)
def test_two_processes_do_what_one_does_that_accumulates(two, tmp_path, name, accumulate):
    alone = run(tmp_path, replace(RUNS[name], accumulate=accumulate, shard=False))
    for layer, value in found(two, name)["whole"].items():
        torch.testing.assert_close(value, alone[layer], rtol=1e-4, atol=1e-5)


def test_metrics_are_means_over_the_processes_and_written_once(two):
    records = read_metrics(two / "adamw")
    assert [(r["step"], "loss" in r) for r in records] == [
        (2, True), (3, True), (4, True), (4, False), (6, True), (8, True), (8, False)
    ]  # fmt: skip
    assert records[0]["position"] == 1.5  # of positions 0 to 3
    assert records[3]["val/norm"] > 0


def test_a_checkpoint_of_two_processes_is_not_for_one(two):
    with pytest.raises(MultiflowError, match=r"processes \(2 then, 1 now\)"):
        train(make_model(), batch, loss, PLAIN, two / "adamw", resume=True)


def test_one_process_has_nothing_to_split(tmp_path):
    with pytest.raises(MultiflowError, match="shard was given, and there is one process"):
        train(make_model(), batch, loss, RUNS["split"], tmp_path)
