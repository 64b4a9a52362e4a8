from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.bench import pruning
from multiflow.bench.config import read_grid
from multiflow.bench.grid import expand
from multiflow.bench.records import Cell, Results
from multiflow.bench.run import RunOptions, prepare, run_grid, spread
from multiflow.cli import main
from tests import processes
from tests.bench.conftest import compute, config, write_config

CHANGING = ("seconds", "cost", "peak_memory", "finished")
SLOW = """
import time
from pathlib import Path
from multiflow.methods import scorer

@scorer
def stuck(weight):
    if not Path("{go}").exists():
        Path("{here}").touch()
        time.sleep(600)
    return weight.abs()
"""
FAILING = """
from multiflow.methods import scorer

@scorer
def failing(weight):
    raise RuntimeError("out of\\n luck")
"""


def figures(cells: dict[str, Cell]) -> dict[str, Cell]:
    """What must be the same in two runs."""
    return {id: replace(cell, **dict.fromkeys(CHANGING)) for id, cell in cells.items()}


@pytest.fixture(scope="module")
def ran(tiny: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Cell]]:
    """A grid that was computed: its config, its folder, and the cells in the order in which they ended."""
    folder = tmp_path_factory.mktemp("bench")
    pruners = ["dense", "wanda", "multiflow", "quick"]
    tiers = [{"name": "1", "pruners": pruners, "sparsities": [0.5, 0.75]}]
    quick = {"method": "chita", "hyper": {"batches_per_step": 2}}
    path = write_config(folder, config(tiny, world, tiers=tiers, pruners={"quick": quick}))
    return path, folder / "results", compute(path, folder / "results")


def test_a_grid_leaves_its_cells(ran: tuple[Path, Path, list[Cell]]) -> None:
    _, folder, cells = ran
    results = Results(folder)
    assert [cell.error for cell in cells] == [None] * 7
    assert results.cells() == {cell.id: cell for cell in cells}
    assert [cell.id for cell in results.expected()] == [cell.id for cell in cells]
    assert all(cell.score is None for cell in results.expected())
    dense = cells[0]
    assert (dense.pruner, dense.metric, dense.steps) == ("dense", "mean R@1", 2)
    assert dense.score == pytest.approx(sum(dense.each) / len(dense.each))
    assert [step for step, _ in dense.curve] == [1, 2]
    assert set(dense.seconds) == {"finetune", "evaluate"}
    assert set(dense.cost) == {"forward", "dense_forward", "memory", "dense_memory"}
    assert 1e8 < dense.peak_memory < 1e11
    assert dense.versions["torch"] == torch.__version__
    assert "threads" in dense.machine
    assert not (folder / "stats").exists()
    assert not list((folder / "runs").glob("*"))
    assert (folder / "config.yaml").read_text().startswith("name: tiny")


def test_a_pruning_is_made_once_for_all_its_cells(ran: tuple[Path, Path, list[Cell]]) -> None:
    results = Results(ran[1])
    lines = (ran[1] / "prunings.jsonl").read_text().splitlines()
    prunings = results.prunings()
    assert [json.loads(line)["pruner"] for line in lines] == ["wanda", "multiflow", "quick"]
    wanda, flow, chita = prunings.values()
    assert wanda.calibration == flow.calibration > 0
    assert wanda.pairs == flow.pairs == chita.pairs == 8
    sizes = [size for *_, size in wanda.layers]
    for one in (wanda, flow, chita):
        assert {s: sum(zeros) for s, zeros in one.zeros.items()} == {s: round(s * sum(sizes)) for s in (0.5, 0.75)}


def test_masks_are_those_of_the_library(ran: tuple[Path, Path, list[Cell]], tiny: Path) -> None:
    cell = next(cell for cell in ran[2] if cell.pruner == "multiflow")
    masks = mf.Masks.load(ran[1] / "masks" / str(cell.pruning) / "mask-0.75.safetensors")
    grid, _ = read_grid(ran[0])
    model = mf.load_model(tiny)
    batches = pruning.calibration_batches(grid.models["tiny"], model, 0)
    assert masks == mf.prune(model, "multiflow", 0.75, batches).masks[0.75]


def test_what_is_done_is_skipped(ran: tuple[Path, Path, list[Cell]]) -> None:
    path, folder, _ = ran
    before = (folder / "cells.jsonl").read_bytes()
    assert compute(path, folder) == []
    assert (folder / "cells.jsonl").read_bytes() == before


def test_the_same_cells_again_have_the_same_figures(ran: tuple[Path, Path, list[Cell]], tmp_path: Path) -> None:
    path, folder, _ = ran
    compute(path, tmp_path / "again", only=["pruner=dense,quick"])
    again = figures(Results(tmp_path / "again").cells())
    assert len(again) == 3
    assert again == {id: cell for id, cell in figures(Results(folder).cells()).items() if id in again}


def test_another_sparsity_goes_on_from_the_masks_there_are(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["tiers"][0] |= {"pruners": ["magnitude"], "sparsities": [0.5]}
    compute(write_config(tmp_path, small), tmp_path / "r")
    asked = []

    def prune(model: Any, method: str, sparsities: list[float], *args: Any, **options: Any) -> Any:
        asked.append(sparsities)
        return mf.prune(model, method, sparsities, *args, **options)

    monkeypatch.setattr(pruning, "prune", prune)
    small["tiers"][0]["sparsities"] = [0.5, 0.75]
    (cell,) = compute(write_config(tmp_path, small), tmp_path / "r")
    assert (cell.sparsity, asked) == (0.75, [[0.75]])
    assert [list(one.zeros) for one in Results(tmp_path / "r").prunings().values()] == [[0.5, 0.75]]
    masks = tmp_path / "r" / "masks" / str(cell.pruning) / "mask-0.5.safetensors"
    masks.unlink()
    (tmp_path / "r" / "cells.jsonl").unlink()
    assert len(compute(tmp_path / "grid.yaml", tmp_path / "r")) == 2
    assert asked[1:] == [[0.5]]


def test_workers_begin_with_a_cell_of_every_pruning(small: dict[str, Any], tmp_path: Path) -> None:
    first = {"name": "1", "pruners": ["dense", "magnitude", "wanda"], "sparsities": [0.5, 0.75]}
    small["tiers"] = [first, {"name": "2", "pruners": ["wanda", "random"], "sparsities": [0.9]}]
    plans = expand(read_grid(write_config(tmp_path, small))[0])
    said = [f"{plan.cell.tier} {plan.cell.pruner} {plan.cell.sparsity:g}" for plan in spread(plans)]
    assert said[:3] == ["1 dense 0", "1 magnitude 0.5", "1 wanda 0.5"]
    assert said[3:] == ["1 magnitude 0.75", "1 wanda 0.75", "2 random 0.9", "2 wanda 0.9"]


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(small: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "failing_pruner.py").write_text(FAILING)
    small["modules"] = [str(tmp_path / "failing_pruner.py")]
    small["tiers"][0] |= {"pruners": ["failing", "magnitude"], "sparsities": [0.5]}
    path, folder = write_config(tmp_path, small), tmp_path / "r"
    failed, good = compute(path, folder)
    assert (failed.error, failed.score, good.error) == ("RuntimeError: out of luck", None, None)
    assert "in failing" in (folder / "errors" / f"{failed.id}.txt").read_text()
    assert compute(path, folder, skip_failed=True) == []
    assert [cell.id for cell in compute(path, folder)] == [failed.id]
    assert len((folder / "cells.jsonl").read_text().splitlines()) == 3


def test_data_that_do_not_fit_are_found_before_the_first_cell(small: dict[str, Any], tmp_path: Path) -> None:
    small["tasks"]["retrieval"]["test_split"] = "tset"
    with pytest.raises(MultiflowError, match=r"task 'retrieval': .*'tset'"):
        compute(write_config(tmp_path, small), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_runners_in_one_folder_do_not_give_each_other_orders(small: dict[str, Any], tmp_path: Path) -> None:
    path, folder = write_config(tmp_path, small), tmp_path / "r"
    (grid, text), how = read_grid(path), RunOptions(device="cpu")
    plans, chosen = prepare(grid, how)
    first = run_grid(grid, text, plans, chosen, folder, how, print)
    assert next(first).error is None
    second = run_grid(grid, text, plans, chosen, folder, replace(how, device="cuda:99"), print)
    failed = next(second)
    second.close()  # type: ignore[attr-defined]
    assert "device 'cuda:99' is not on this machine" in str(failed.error)
    found = list(first)  # the one that the other runner failed at is told, and not tried again
    assert [cell.error for cell in found] == [failed.error, None]
    assert found[0] == failed
    assert len((folder / "cells.jsonl").read_text().splitlines()) == 3


def test_data_are_made_when_missing(small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small["make"] = {"shapes": {"out": "made/shapes", "train": 24, "val": 4, "test": 4, "size": 32}}
    small["tasks"]["retrieval"]["data"] = "made/shapes/coco"
    path = write_config(tmp_path, small)
    (cell,) = compute(path, tmp_path / "r", only=["pruner=dense"])
    assert cell.error is None
    small["make"]["shapes"]["train"] = 26
    with pytest.raises(MultiflowError, match="train 24, .* 26"):
        compute(write_config(tmp_path, small), tmp_path / "r")


def run_command(config: Path, folder: Path) -> None:
    raise SystemExit(main(["bench", "run", str(config), "--out", str(folder), "--device", "cpu"]))


def test_killed_in_a_cell_and_two_runners_at_once(small: dict[str, Any], tmp_path: Path) -> None:
    go, here, folder = tmp_path / "go", tmp_path / "here", tmp_path / "r"
    (tmp_path / "stuck_pruner.py").write_text(SLOW.format(go=go, here=here))
    small["modules"] = [str(tmp_path / "stuck_pruner.py")]
    small["tiers"][0] |= {"pruners": ["dense", "stuck", "magnitude"], "sparsities": [0.5]}
    path = write_config(tmp_path, small)
    with processes.fork(run_command, path, folder) as killed:
        while not here.exists():
            assert killed.process.is_alive(), killed.err.read_text()
            time.sleep(0.05)
        killed.process.kill()
        assert killed.end() == -signal.SIGKILL
    before = (folder / "cells.jsonl").read_text()
    with (folder / "cells.jsonl").open("a") as file:
        file.write('{"id": "torn')
    go.touch()
    with processes.fork(run_command, path, folder) as one, processes.fork(run_command, path, folder) as other:
        assert [one.end(), other.end()] == [0, 0], one.err.read_text() + other.err.read_text()
    assert [json.loads(line)["pruner"] for line in before.splitlines() if '"pruner"' in line] == ["dense"]
    lines = (folder / "cells.jsonl").read_bytes()
    assert lines.startswith(before.encode())
    cells = [json.loads(line) for line in lines.splitlines()]
    assert sorted(cell["pruner"] for cell in cells) == ["dense", "magnitude", "stuck"]
    assert [cell["error"] for cell in cells] == [None] * 3
    assert len((folder / "prunings.jsonl").read_text().splitlines()) == 2


def test_a_pruning_in_steps_goes_on_where_it_was_stopped(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"method": "itersnip", "hyper": {"steps": 4, "batches_per_step": 1}}
    tiers = [{"name": "1", "pruners": ["slow"], "sparsities": [0.5]}]
    path = write_config(tmp_path, {**small, "tiers": tiers, "pruners": {"slow": entry}})
    first = compute(path, tmp_path / "whole")[0]

    seen: list[tuple[Any, ...]] = []

    def prune(*given: Any, stop: int | None, **options: Any) -> Any:
        def progress(*what: Any) -> None:
            seen.append(what)
            if len(seen) == stop:
                raise KeyboardInterrupt

        return mf.prune(*given, **{**options, "progress": progress})

    monkeypatch.setattr(pruning, "prune", partial(prune, stop=None))
    compute(path, tmp_path / "counted")
    steps = len(seen)
    seen.clear()
    monkeypatch.setattr(pruning, "prune", partial(prune, stop=steps - 2))
    with pytest.raises(KeyboardInterrupt):
        compute(path, tmp_path / "stopped")
    seen.clear()
    monkeypatch.setattr(pruning, "prune", partial(prune, stop=None))
    again = compute(path, tmp_path / "stopped")[0]
    assert len(seen) < steps
    assert (again.id, again.figures) == (first.id, first.figures)
    assert not list(tmp_path.glob("stopped/masks/*/calibration*"))
