"""Pruning by two processes against pruning by one; `ranks_worker` holds what the two do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import multiflow as mf
from multiflow.base import parallel
from tests import golden_data, ranks_pruning, ranks_worker
from tests.processes import fork_two
from tests.ranks_pruning import FAINT, GROUPED, PRUNED, SHORT, SPARSITIES, TRAINING, kept
from tests.ranks_worker import CASES, IN_FOLDERS
from tests.small import ADAPTER, towers_batches, two_towers


class Found(NamedTuple):
    """What both processes found, case by case, and the folder they worked in."""

    first: dict[str, Any]
    second: dict[str, Any]
    folder: Path

    def same(self, case: str) -> Any:
        """What both processes found in a case, which must be the same."""
        assert_same(self.first[case], self.second[case])
        return self.first[case]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("two")
    fork_two(ranks_worker.main, folder)
    return Found(*(torch.load(folder / f"found-{rank}.pt") for rank in range(2)), folder)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict), other
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert one == other


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Masks but for one weight in 100,000, at least one a tensor, and weights up to float summation."""
    assert isinstance(ours, dict), ours
    assert list(ours) == list(expected)
    for name, value in ours.items():
        if value.dtype == torch.bool:
            assert int((value != expected[name]).sum()) <= max(1, value.numel() // 100_000), name
        else:
            wrong = ~torch.isclose(value, expected[name], rtol=1e-3, atol=1e-5)
            assert int(wrong.sum()) <= max(1, value.numel() // 100_000), name


@pytest.mark.parametrize("case", PRUNED)
def test_masks_and_weights_are_those_of_one_process(case: str, found: Found) -> None:
    assert_close(found.same(case), ranks_pruning.prune_golden(*PRUNED[case]))


@pytest.mark.parametrize("case", GROUPED)
def test_the_queues_of_blip_are_those_of_one_process_that_takes_batches_in_groups(case: str, found: Found) -> None:
    assert_close(found.same(case), ranks_pruning.prune_groups(*GROUPED[case]))


def test_groups_make_a_difference() -> None:
    method, count, settings = GROUPED["queue"]
    alone, grouped = (ranks_pruning.prune_groups(method, count, settings, size) for size in (1, 2))
    assert_close(alone, ranks_pruning.prune_blip(method, count, settings))
    assert any(int((alone[name] != grouped[name]).sum()) > 1 for name in alone)


def test_statistics_and_counts_are_those_of_one_process(found: Found) -> None:
    stats, ours = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER), found.same("statistics")
    assert (ours["batches"], ours["counts"]) == (stats.batches, stats.counts["input_norm"])
    for name, norm in stats["input_norm"].items():
        torch.testing.assert_close(ours["norms"][name], norm)


def mean_of_pairs(
    batches: list[Any], pairs: list[tuple[int, ...]], sparsities: list[float] = SPARSITIES
) -> dict[str, torch.Tensor]:
    """Train masks in one process, each step on the mean loss of some batches."""
    adapter = replace(FAINT, loss=lambda model, of: torch.stack([FAINT.loss(model, x) for x in of]).mean())
    data = [[batches[at] for at in pair] for pair in pairs]
    return kept(mf.prune(two_towers(), "tamt", sparsities, data, adapter=adapter, **TRAINING))


def test_a_learner_sees_the_mean_of_the_gradients(found: Found) -> None:
    expected = mean_of_pairs(towers_batches(4, 4, 4), [(0, 1), (2, 0), (1, 2)])
    assert_close(found.same("learned"), expected)
    alone = mf.prune(two_towers(), "tamt", SPARSITIES, towers_batches(4, 4, 4), adapter=FAINT, **TRAINING)
    assert any(not torch.equal(mask, expected[name]) for name, mask in kept(alone).items())


def test_a_learner_with_fewer_batches_than_processes(found: Found) -> None:
    assert_close(found.same("learned from one batch"), mean_of_pairs(towers_batches(4), [(0,)]))


def test_each_process_makes_its_own_batches_alone(found: Found) -> None:
    first, second = (of["by number"] for of in (found.first, found.second))
    assert (first.pop("made"), second.pop("made")) == ([0, 2, 4], [1, 3])
    assert (first.pop("made in steps"), second.pop("made in steps")) == ([0, 2, 3, 0], [1, 4])
    data = towers_batches(4, 3, 2, 1, 5)
    assert_same(first, second)
    assert_close(first["once"], kept(mf.prune(two_towers(), "snip", SPARSITIES, data, adapter=ADAPTER)))
    assert_close(first["in steps"], kept(mf.prune(two_towers(), "itersnip", 0.75, data, adapter=ADAPTER, **SHORT)))


def test_a_batch_that_cannot_be_made_is_left_out(found: Found) -> None:
    ours, data = found.same("broken"), towers_batches(4, 3, 2, 1)
    del data[1]
    norms = mf.calibrate(two_towers(), data, adapter=ADAPTER)["input_norm"]
    gradients = mf.prune(two_towers(), "snip", 0.5, data, adapter=ADAPTER).stats["gradient"]
    for name in norms:
        torch.testing.assert_close(ours["norms"][name], norms[name])
        torch.testing.assert_close(ours["gradients"][name], gradients[name])
    assert_close(ours["rows"], kept(mf.prune(two_towers(), "chita", 0.5, data, adapter=ADAPTER, batches_per_step=3)))
    learned = mf.prune(two_towers(), "tamt", 0.5, towers_batches(4), adapter=FAINT, **TRAINING)
    assert_close(ours["learned"], kept(learned))


def test_generators(found: Found) -> None:
    expected = mf.prune(two_towers(), "snip", SPARSITIES, towers_batches(), adapter=ADAPTER)
    assert_close(found.same("generators"), kept(expected))


def test_the_first_process_alone_reports_progress(found: Found) -> None:
    assert found.first["progress"] == [("calibrate", 2, 3), ("calibrate", 3, 3)]
    assert found.second["progress"] == []


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("other method", "different settings: method ('snip' on process 0, 'wanda' on process 1)"),
        ("other sparsity", "different settings: sparsity ([0.5] on process 0, [0.75] on process 1); start all"),
        ("other seed", "different settings: seed (0 on process 0, 1 on process 1); start all"),
        ("other weights", "different settings: weights_hash ("),
        ("other batches", "different settings: batches (3 on process 0, 4 on process 1); start all"),
        (
            "other hyper",
            "different settings: hyper ({'alpha': 0.25} on process 0, {'alpha': 1.25} on process 1); start",
        ),
        ("more batches", "the processes have different numbers of batches, 3 and 4; give every process all of them"),
        ("unknown method", "unknown pruner 'wandaa'"),
        ("no batches", "there are no calibration batches"),
        ("until stable", "until_stable works in one process, and there are 2"),
        ("padding", "layer 'text.0' saw nothing but padding"),
        ("NaN, wanda", "NaN or Inf in the input of layer 'vision.0' in batch 2; "),
        ("NaN, snip", "the loss of batch 2 is nan; "),
        ("NaN, tamt", "the loss of batch 2 is nan; "),
        ("out of step", "out of step (process 0 at 'here', process 1 at 'there')"),
        ("nested", "the inner one is wrong indeed"),
    ],
)
def test_what_is_wrong_in_one_process_is_said_by_both(case: str, said: str, found: Found) -> None:
    first, second = (of[case].partition(": ") for of in (found.first, found.second))
    assert {first[0], second[0]} <= {"MultiflowError", "Ended"}
    assert first[2] == second[2]
    assert said in first[2]


@pytest.mark.parametrize("case", ["bug, snip", "bug, multiflow"])
def test_a_bug_in_one_process_ends_both(case: str, found: Found) -> None:
    assert found.first[case] == "Ended: process 1 failed: ZeroDivisionError: division by zero"
    assert found.second[case] == "ZeroDivisionError: division by zero"


def test_every_case_is_looked_at(found: Found) -> None:
    assert list(found.first) == list(found.second) == [*CASES, *IN_FOLDERS]


def test_a_killed_calibration_goes_on(found: Found) -> None:
    ours = found.same("goes on")
    assert ours["error"] == "Killed"
    assert ours["files"] == ["stats-rank1.safetensors", "stats.safetensors"]
    assert_same(ours["killed"], ours["whole"])
    assert_same(ours["one file lost"], ours["whole"])
    assert ours["left"] == []


def test_a_killed_calibration_of_blip_goes_on(found: Found) -> None:
    ours = found.same("goes on with queues")
    assert ours["files"] == ["stats-rank1.safetensors", "stats.safetensors"]
    assert_same(ours["killed"], ours["whole"])
    assert_same(ours["one file lost"], ours["whole"])


@pytest.mark.parametrize(("method", "settings"), [("itersnip", SHORT), ("tamt", TRAINING)])
def test_a_killed_method_in_steps_goes_on(method: str, settings: dict[str, Any], found: Found) -> None:
    ours = found.same("goes on in steps")
    assert ours[method]["files"] == [f"{method}-0.75.safetensors"]
    assert ours["left"] == []
    data = towers_batches(4, 3, 2, 1, 5)
    expected = (
        mean_of_pairs(data, [(0, 1), (2, 3), (4, 0), (1, 2)], [0.75])
        if method == "tamt"
        else kept(mf.prune(two_towers(), method, 0.75, data, adapter=FAINT, **settings))
    )
    assert_close(ours[method]["masks"], expected)


def test_a_checkpoint_of_two_processes_is_refused_by_one(found: Found) -> None:
    assert found.first["keeps a file"].startswith("Killed")
    place = mf.Checkpoint(found.folder / "keeps-a-file" / "stats.safetensors")
    with pytest.raises(mf.MultiflowError, match=r"other settings: processes \(2 then, 1 now\)"):
        mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, checkpoint=place)


def test_sums_and_rows_of_both(found: Found) -> None:
    first, second = (of["primitives"] for of in (found.first, found.second))
    assert (first.pop("place"), second.pop("place")) == ((0, 2), (1, 2))
    assert_same(first, second)
    assert first["exchange"] == [0, 1]
    assert first["sums"][0].tolist() == [[3.0, 3.0]] * 3
    assert first["sums"][1].tolist() == [[0.0, 6.0], [2.0, 8.0], [4.0, 10.0]]
    assert [rows.tolist() for rows in first["rows"]] == [[[5.0, 5.0]], [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], []]


def test_one_process_alone() -> None:
    assert (parallel.rank(), parallel.world(), parallel.exchange("place", "here")) == (0, 1, ["here"])
    ones = torch.ones(2, 3)
    parallel.sum_over_ranks_([ones])
    assert parallel.gather_rows(ones) is ones
    assert torch.equal(ones, torch.ones(2, 3))
    parallel.agree({"seed": 0})
    with pytest.raises(ZeroDivisionError), parallel.together():
        _ = 1 / 0


def test_a_forward_of_blip_alone_is_a_step_with_no_others() -> None:
    model = golden_data.model("blip")
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.idle()
    assert int(model.queue_ptr) == int(before["queue_ptr"])
    assert torch.equal(model.image_queue, before["image_queue"])
    momentum = model.config.momentum
    moved = before["vision_proj_m.weight"] * momentum + model.vision_proj.weight.detach() * (1 - momentum)
    torch.testing.assert_close(model.get_buffer("vision_proj_m.weight"), moved)


@pytest.mark.parametrize(
    "error", [RuntimeError("Connection closed by peer [::1]\nat"), torch.distributed.DistError("[Rank 1] [::1]\nat")]
)
def test_a_process_that_is_gone_is_told_with_what_torch_says_first(error: Exception) -> None:
    said = r"has died or does not answer; see what it said last \([^\n]*\[::1\]\)$"
    with pytest.raises(parallel.Ended, match=said), parallel._naming_lost():  # nobody can lose a process on demand
        raise error


def test_another_error_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="^shape mismatch$"), parallel._naming_lost():  # as above
        raise RuntimeError("shape mismatch")
