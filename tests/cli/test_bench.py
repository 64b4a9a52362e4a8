from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import config, write_config
from tests.cli.conftest import Run


@pytest.fixture
def grid(tiny: Path, world: Path, tmp_path: Path) -> Path:
    """The config of a small grid: the baseline, and magnitude at two sparsities."""
    return write_config(tmp_path, config(tiny, world, variables={"unused": None}))


def counts(out: str) -> list[list[str]]:
    """The rows of the table that a run ends with."""
    return [words for line in out.splitlines() if (words := line.split()) and words[-1].isdigit()]


def test_a_grid_from_the_config_to_the_report(run: Run, grid: Path) -> None:
    first = run("bench", "run", grid, "--out", "r", "--dry-run", "--device", "cpu")
    assert (first.code, counts(first.out)) == (0, [["1", "3", "0", "0", "3"]])
    assert not Path("r").exists()
    ran = run("bench", "run", grid, "--out", "r", "--only", "sparsity=0,0.75", "--device", "cpu")
    assert (ran.code, counts(ran.out)) == (0, [["1", "2", "2", "0", "0"]])
    assert "cell 1/2  dense retrieval on tiny seed 0: " in ran.err
    assert "cell 2/2  magnitude 75 % retrieval on tiny" in ran.err
    assert "ETA 0:00" in ran.err
    again = run("bench", "run", grid, "--out", "r", "--tier", "1", "--device", "cpu")
    assert (again.code, counts(again.out)) == (0, [["1", "3", "3", "0", "0"]])
    assert [line.split(":")[0] for line in again.err.splitlines()] == [
        "cell 1/1  magnitude 50 % retrieval on tiny seed 0"
    ]
    report = run("bench", "report", "r")
    assert report.code == 0, report.err
    assert all(Path(line).is_file() for line in report.out.splitlines())
    assert Path("r/report/report.html").is_file()


def test_the_dry_run_opens_the_data(run: Run, grid: Path) -> None:
    text = grid.read_text()
    grid.write_text(text.replace("retrieval:\n", "retrieval:\n    test_split: tset\n", 1))
    assert "task 'retrieval': " in run("bench", "run", grid, "--out", "r", "--dry-run", "--device", "cpu").error
    made = "make: {shapes: {out: made, train: 24, val: 4, test: 4, size: 32}}\n"
    grid.write_text(re.sub(r"data: .*coco", "data: made/coco", grid.read_text()) + made)
    later = run("bench", "run", grid, "--out", "r", "--dry-run", "--device", "cpu")
    assert (later.code, counts(later.out)) == (0, [["1", "3", "0", "0", "3"]])
    (Path("made") / "coco").mkdir(parents=True)
    assert "task 'retrieval': " in run("bench", "run", grid, "--out", "r", "--dry-run", "--device", "cpu").error
    assert not Path("r").exists()


def test_an_engine_option_is_refused_before_anything_is_written(run: Run, grid: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is an optional extra")
    words = ["--out", "r", "--engine", "slurm", "--cpus", "1", "--gpus", "0", "--engine-set", "minutes=1h"]
    assert "minutes=1h is not a whole number" in run("bench", "run", grid, *words).error
    assert not Path("r").exists()


def test_failed_cells_end_in_exit_code_1(run: Run, grid: Path, tmp_path: Path) -> None:
    (tmp_path / "luckless.py").write_text(
        "from multiflow.methods import scorer\n\n@scorer\ndef luckless(weight):\n    raise RuntimeError('no luck')\n"
    )
    text = grid.read_text().replace("- magnitude", "- luckless")
    grid.write_text(text + "modules: [luckless.py]\n")
    ran = run("bench", "run", grid, "--out", "r", "--device", "cpu")
    assert (ran.code, counts(ran.out)) == (1, [["1", "3", "1", "2", "0"]])
    assert "luckless 50 % retrieval on tiny seed 0: failed" in ran.err
    assert "failed: RuntimeError: no luck" in ran.err
    assert "2 cells failed; see r/errors" in ran.err


@pytest.mark.usefixtures("forks")
def test_a_worker_of_its_own(run: Run, grid: Path) -> None:
    ran = run("bench", "run", grid, "--out", "r", "--engine", "local", "--workers", 1, "--device", "cpu")
    assert (ran.code, counts(ran.out)) == (0, [["1", "3", "3", "0", "0"]]), ran.err
    cells = [json.loads(line) for line in Path("r/cells.jsonl").read_text().splitlines()]
    assert len({cell["id"] for cell in cells}) == len(cells) == 3


def test_cells_of_an_earlier_config_are_told_apart(run: Run, grid: Path) -> None:
    for steps in (2, 1):
        grid.write_text(grid.read_text().replace("steps: 2", f"steps: {steps}"))
        assert run("bench", "run", grid, "--out", "r", "--only", "pruner=dense", "--device", "cpu").code == 0
    assert run("bench", "report", "r").code == 0
    assert "1 cell of other settings" in Path("r/report/report.md").read_text()


def test_help(run: Run) -> None:
    for words in (["bench"], ["bench", "--help"]):
        ran = run(*words)
        assert ran.code == 0
        assert "bench run" in ran.out
        assert "bench report" in ran.out
        assert "prune " not in ran.out
    assert "--skip-failed" in run("bench", "run", "--help").out
    assert "'bench rn'; known: bench run, bench report" in run("bench", "rn").error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "none.yaml"], "'none.yaml'"),
        (
            ["run", "grid.yaml", "--engine", "slurm", "--cpus", "4"],
            "--engine slurm computes on other machines than this",
        ),
        (["run", "grid.yaml", "--engine", "locl"], "unknown engine 'locl'; known: here, local, ray, slurm; did you"),
        (["run", "grid.yaml", "--workers", "0"], "--workers 0 was given; expected at least 1"),
        (["run", "grid.yaml", "--tier", "2"], "unknown tier '2'; known: 1"),
        (["run", "grid.yaml", "--set", "usused=1"], "did you mean 'unused'?"),
        (["run", "grid.yaml", "--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["run", "grid.yaml", "--engine-set", "address"], "--engine-set got 'address'; expected NAME=VALUE"),
        (
            ["run", "grid.yaml", "--engine-set", "address=auto"],
            "engine 'here' has no settings of its own, and address",
        ),
        (["run", "grid.yaml", "--memory", "60"], "--memory 60 was given, and engine 'here' limits no memory; leave it"),
        (["run", "grid.yaml", "--memory", "-1"], "--memory -1.0 was given; expected at least 0"),
        (["run", "grid.yaml", "--workers", "2"], "--workers 2 was given, and engine 'here' is this one process"),
        (["report", "none"], "'none' holds no cells.jsonl; give a folder that 'multiflow bench run' wrote"),
    ],
)
def test_bad_input(run: Run, grid: Path, words: list[Any], said: str) -> None:
    assert said in run("bench", *words).error
    assert not Path("runs").exists()
