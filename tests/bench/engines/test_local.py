from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.engines import EngineOptions, Job, find_engine, here, local

pytestmark = pytest.mark.usefixtures("forks")


def work(job: Job) -> None:
    """Note the process; then do what the name of the cell says."""
    with (Path(job.results) / job.cell).open("a") as file:
        file.write(f"{os.getpid()}\n")
    tries = len((Path(job.results) / job.cell).read_text().splitlines())
    if job.cell == "raises":
        raise ValueError("two\nlines")
    if job.cell == "refuses":
        raise MultiflowError("bad")
    if job.cell == "dies" or (job.cell == "dies once" and tries == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.cell == "leaves":
        os._exit(3)


def test_workers_that_die_are_replaced_and_their_jobs_tried_once_more(tmp_path: Path) -> None:
    names = ["a", "dies", "b", "dies once", "raises", "leaves", "c"]
    jobs = [Job(str(tmp_path), name) for name in names]
    outcomes = {outcome.job.cell: outcome.error for outcome in local.run(jobs, work, EngineOptions(workers=2))}
    assert outcomes == {
        "a": None,
        "b": None,
        "c": None,
        "dies once": None,
        "dies": "the worker was ended by SIGKILL, perhaps for want of memory (2 times)",
        "leaves": "the worker ended with exit code 3 (2 times)",
        "raises": "ValueError: two lines",
    }
    tries = {name: (tmp_path / name).read_text().splitlines() for name in names}
    assert {name: len(of) for name, of in tries.items()} == {
        **dict.fromkeys(names, 1),
        **dict.fromkeys(("dies", "dies once", "leaves"), 2),
    }
    assert not any(str(os.getpid()) in of for of in tries.values())


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    outcomes = local.run([Job(str(tmp_path), name) for name in "ab"], work, EngineOptions(workers=1))
    assert next(outcomes).error is None
    outcomes.close()  # type: ignore[attr-defined]
    pid = int((tmp_path / "a").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(local.run([], work, EngineOptions(workers=2))) == []


def test_here_is_this_process(tmp_path: Path) -> None:
    jobs = [Job(str(tmp_path), name) for name in ("a", "raises", "refuses")]
    outcomes = list(here.run(jobs, work, EngineOptions()))
    assert [outcome.error for outcome in outcomes] == [None, "ValueError: two lines", "bad"]
    assert int((tmp_path / "a").read_text()) == os.getpid()
    with pytest.raises(MultiflowError, match="2 workers .* engine 'here'"):
        list(here.run(jobs, work, EngineOptions(workers=2)))


@pytest.mark.parametrize("engine", ["here", "local"])
def test_engines_without_settings_refuse_them(tmp_path: Path, engine: str) -> None:
    options = EngineOptions(options={"address": "auto", "partition": "gpu"})
    said = f"engine '{engine}' has no settings of its own, and address=auto, partition=gpu was given"
    with pytest.raises(MultiflowError, match=said):
        find_engine(engine, options)
    with pytest.raises(MultiflowError, match=said):
        next(find_engine(engine)([Job(str(tmp_path), "a")], work, options))
    assert not list(tmp_path.iterdir())


def test_an_engine_that_there_is_not() -> None:
    with pytest.raises(MultiflowError, match="'locl'; known: here, local, ray, slurm"):
        find_engine("locl")


def test_workers_take_the_gpus_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, seen in enumerate("454"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        local.choose_gpu(number)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
