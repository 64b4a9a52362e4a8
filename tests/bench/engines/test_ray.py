"""The ray engine on a local Ray of two cores, which it starts itself."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry
from multiflow.bench import engines
from multiflow.bench.engines import EngineOptions, Job, find_engine

ray = pytest.importorskip("ray", reason="Ray is an optional extra")
from multiflow.bench.engines.ray import _ending, run  # noqa: E402

TWO = EngineOptions(workers=2)


def work(job):
    """Append the cell to a file; die, fail or stay as the cell's name says."""
    folder = Path(job.results)
    with (folder / f"{job.cell}.pids").open("a") as file:
        print(os.getpid(), file=file)
    if job.cell == "dies-always" or (job.cell == "dies-once" and len(pids(folder, job.cell)) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.cell == "fails":
        raise MultiflowError("no data folder\n'/data'")
    if job.cell == "stays":
        time.sleep(600)
    with (folder / "cells.jsonl").open("a") as file:
        print(job.cell, file=file)


def pids(folder, cell):
    return [int(pid) for pid in (folder / f"{cell}.pids").read_text().split()]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster that an engine has started and ends when it is closed; the others in the same process use it."""
    folder = str(tmp_path_factory.mktemp("first"))
    outcomes = run([Job(folder, "plain"), Job(folder, "other")], work, TWO)
    assert next(outcomes).error is None
    yield
    outcomes.close()
    assert not ray.is_initialized()


def test_dead_workers_are_replaced_and_their_jobs_retried(tmp_path, cluster):
    cells = ["plain", "dies-once", "dies-always", "fails", "last"]
    jobs = [Job(str(tmp_path), cell) for cell in cells] + [Job(str(tmp_path / "elsewhere"), "lost")]
    errors = {outcome.job.cell: outcome.error for outcome in run(jobs, work, TWO)}
    assert errors.keys() == {*cells, "lost"}
    assert errors["plain"] is errors["dies-once"] is errors["last"] is None
    assert errors["dies-always"].startswith("the Ray worker died: ")
    assert errors["fails"] == "no data folder '/data'"
    assert f"does not see the folder of results '{tmp_path / 'elsewhere'}'" in errors["lost"]
    assert sorted((tmp_path / "cells.jsonl").read_text().split()) == ["dies-once", "last", "plain"]
    assert len(pids(tmp_path, "dies-once")) == len(pids(tmp_path, "dies-always")) == 2
    assert os.getpid() not in pids(tmp_path, "plain")


@pytest.mark.parametrize("name", ["OutOfMemoryError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError"])
def test_a_worker_that_died_is_told_from_work_that_failed(monkeypatch, name):
    error = Exception.__new__(getattr(ray.exceptions, name))
    monkeypatch.setattr(type(error), "__str__", lambda self: "killed\nby the memory monitor")
    monkeypatch.setattr(ray, "get", Mock(side_effect=error))
    assert _ending(None) == ("the Ray worker died: killed", True)


@pytest.fixture
def heard():
    """Ctrl-C is heard, also where the tests were started in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_what_runs(tmp_path, cluster, heard):
    def interrupt():
        while not (tmp_path / "stays.pids").exists():
            if over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    over = threading.Event()
    press = threading.Thread(target=interrupt, daemon=True)
    press.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(run([Job(str(tmp_path), cell) for cell in ("stays", "plain", "stays-too")], work, EngineOptions()))
    finally:
        over.set()
        press.join()
    until = time.monotonic() + 15
    while is_alive(pids(tmp_path, "stays")[0]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(pids(tmp_path, "stays")[0])
    assert not (tmp_path / "cells.jsonl").exists()
    assert ray.is_initialized()


def test_at_most_as_many_at_once_as_workers_and_in_order(tmp_path, cluster):
    cells = [f"cell {number}" for number in range(4)]
    outcomes = run([Job(str(tmp_path), cell) for cell in cells], work, EngineOptions(workers=1))
    assert [outcome.job.cell for outcome in outcomes] == cells
    assert (tmp_path / "cells.jsonl").read_text().splitlines() == cells


def test_a_job_that_fits_no_node_is_told_and_not_waited_for(tmp_path, cluster):
    jobs = [Job(str(tmp_path), "small"), Job(str(tmp_path), "large", cpus=2, gpus=1, memory=10**9)]
    with pytest.raises(MultiflowError, match=r"\(2 CPUs, 1 GPUs, 1.0 GB\); .*: 2 CPUs, 0 GPUs, "):
        next(run(jobs, work, TWO))
    assert not (tmp_path / "cells.jsonl").exists()


def test_what_a_node_cannot_import_is_told(tmp_path, cluster, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(job): ...")
    monkeypatch.syspath_prepend(tmp_path)
    only_here = pytest.importorskip("only_here")
    [outcome] = run([Job(str(tmp_path), "plain")], only_here.work, TWO)
    assert outcome.error == "the Ray worker failed: System error: No module named 'only_here'"


def test_no_jobs_need_no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", None)
    assert list(run([], work, TWO)) == []


def test_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    jobs = [Job(str(tmp_path), "plain")]
    with pytest.raises(MultiflowError, match="unknown option of the ray engine 'adress'.*did you mean 'address'"):
        next(run(jobs, work, EngineOptions(options={"adress": "auto"})))
    with pytest.raises(MultiflowError, match=r"cluster at '127.0.0.1:1' \(.*refused"):
        next(run(jobs, work, EngineOptions(options={"address": "127.0.0.1:1"})))
    with pytest.raises(MultiflowError, match="autoscaling=true .*; expected yes or no"):
        find_engine("ray", EngineOptions(options={"autoscaling": "true"}))
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(MultiflowError, match=r"cluster at 'nowhere' \(Invalid address"):
        next(run(jobs, work, EngineOptions()))


def test_a_cluster_that_asks_for_a_token(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Failed to connect") from RuntimeError("ray.exceptions.AuthenticationError: no token")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(MultiflowError, match="Failed to connect.*; .*RAY_AUTH_MODE=token"):
        next(run([Job(str(tmp_path), "plain")], work, TWO))


def test_without_ray_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "multiflow.bench.engines.ray", raising=False)
    monkeypatch.setattr(engines, "ENGINES", Registry("engine", engines.__name__, late=True))  # nobody has looked yet
    with pytest.raises(MultiflowError, match=r"pip install -e '\.\[ray\]'"):
        find_engine("ray")
