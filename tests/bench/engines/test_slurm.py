"""The slurm engine: on submitit's local executor, and with commands that stand in for those of Slurm."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.engines import EngineOptions, Job, find_engine

submitit = pytest.importorskip("submitit", reason="submitit is an optional extra")
from multiflow.bench.engines import slurm  # noqa: E402
from multiflow.bench.engines.slurm import run  # noqa: E402

ROOT = Path(__file__).parents[3]


def work(job):
    """Append the cell to a file; die, fail or wait as the cell's name says."""
    folder = Path(job.results)
    with (folder / f"{job.cell}.pids").open("a") as file:
        print(os.getpid(), file=file)
    if job.cell == "dies-always" or (job.cell == "dies-once" and len(pids(folder, job.cell)) == 1):
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if job.cell == "fails":
        raise MultiflowError("no data folder\n'/data'")
    while job.cell == "waits" and not (folder / "go").exists():
        time.sleep(0.05)
    with (folder / "cells").open("a") as file:
        print(job.cell, file=file)


def pids(folder, cell):
    return [int(pid) for pid in (folder / f"{cell}.pids").read_text().split()]


def local(workers, **options):
    return EngineOptions(workers=workers, options={"cluster": "local", **options})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Workers import this module; nobody waits for a slow disk to show the result of a dead job."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)


def test_jobs_run_and_those_that_die_are_submitted_again(tmp_path):
    cells = ["plain", "dies-once", "dies-always"]
    errors = {o.job.cell: o.error for o in run([Job(str(tmp_path), cell) for cell in cells], work, local(3))}
    assert errors.keys() == set(cells)
    assert errors["plain"] is errors["dies-once"] is None
    assert "last words" in errors["dies-always"]
    assert str(tmp_path / "slurm") in errors["dies-always"]
    assert sorted((tmp_path / "cells").read_text().split()) == ["dies-once", "plain"]
    assert len(pids(tmp_path, "dies-once")) == len(pids(tmp_path, "dies-always")) == 2
    assert any((tmp_path / "slurm").iterdir())


SBATCH = """#!/bin/bash
if grep -q 'partition=closed' "$1"; then echo 'sbatch: error: invalid partition specified: closed' >&2; exit 1; fi
echo x >> "$0.calls"
export SLURM_ARRAY_JOB_ID=$(wc -l < "$0.calls")
script="$0.$SLURM_ARRAY_JOB_ID"
cp "$1" "$script"  # as Slurm does: submitit renames its own as soon as it has the number
for SLURM_ARRAY_TASK_ID in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")); do
  export SLURM_ARRAY_TASK_ID SLURM_JOB_ID=1$SLURM_ARRAY_TASK_ID
  bash "$script" > /dev/null 2>&1 < /dev/null &
done
echo "Submitted batch job $SLURM_ARRAY_JOB_ID"
"""
SRUN = """#!/bin/bash
fill() { local name="${1//%A/$SLURM_ARRAY_JOB_ID}"; name="${name//%a/$SLURM_ARRAY_TASK_ID}"; echo "${name//%t/0}"; }
exec "${@:6}" > "$(fill "$3")" 2> "$(fill "$5")"
"""
SACCT = "#!/bin/bash\necho 'JobID|State|NodeList'\n"


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for the commands of Slurm, which run all jobs of an array at once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setitem(slurm.POLL, "slurm", 0.1)


def test_arrays_ask_for_what_their_jobs_need(tmp_path, commands):
    small = {"cpus": 3, "memory": 3 * 2**29}
    jobs = [Job(str(tmp_path), "one", **small), Job(str(tmp_path), "large", gpus=0.5, memory=2**34)]
    jobs += [
        Job(str(tmp_path), "two", **small),
        Job(str(tmp_path), "fails", **small),
        Job(str(tmp_path), "large-too", gpus=0.5, memory=2**34),
    ]
    own = {"partition": "gpu", "mail-user": "me@x.org", "exclusive": "yes", "minutes": "90", "setup": "export A=1"}
    outcomes = list(run(jobs, work, EngineOptions(workers=2, options=own)))
    assert {o.job.cell: o.error for o in outcomes if o.error} == {"fails": "no data folder '/data'"}
    done = (tmp_path / "cells").read_text().split()
    assert (set(done[:2]), set(done[2:])) == ({"one", "two"}, {"large", "large-too"})
    first, second = [sorted((tmp_path / "slurm").glob(f"{n}*_submission.sh"))[0].read_text() for n in (1, 2)]
    for script in (first, second):
        for line in ("partition=gpu", "mail-user=me@x.org", "exclusive", "time=90", "job-name=multiflow"):
            assert f"#SBATCH --{line}\n" in script
        assert "\nexport A=1\n" in script
    for line in ("array=0-2%2", "cpus-per-task=3", "mem=1536MB"):
        assert f"#SBATCH --{line}\n" in first
    assert "gpus" not in first
    for line in ("array=0-1%2", "cpus-per-task=1", "mem=16GB", "gpus-per-node=1"):
        assert f"#SBATCH --{line}\n" in second


def test_jobs_outlive_the_runner(tmp_path, commands, capsys):
    outcomes = run([Job(str(tmp_path), cell) for cell in ("plain", "waits")], work, EngineOptions(workers=2))
    assert next(outcomes).job.cell == "plain"
    outcomes.close()
    assert "1 job(s) go on without this process" in capsys.readouterr().err
    (tmp_path / "go").touch()
    until = time.monotonic() + 20
    while "waits" not in (tmp_path / "cells").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "cells").read_text().split() == ["plain", "waits"]


def test_what_sbatch_says_against_an_option_is_told(tmp_path, commands):
    closed = EngineOptions(options={"partition": "closed"})
    with pytest.raises(MultiflowError, match=r"invalid partition specified: closed.*given: partition=closed"):
        list(run([Job(str(tmp_path), "one")], work, closed))


def test_bad_input(tmp_path, monkeypatch):
    job = Job(str(tmp_path), "one")
    with pytest.raises(MultiflowError, match="cluster=slrm is unknown.*slurm, local"):
        list(run([job], work, EngineOptions(options={"cluster": "slrm"})))
    with pytest.raises(MultiflowError, match="minutes=1h.*whole number"):
        list(run([job], work, local(1, minutes="1h")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MultiflowError, match="cannot submit 1 job.*srun"):
        list(run([job], work, EngineOptions()))


def test_large_grids_are_several_arrays():
    jobs = [Job("/r", str(number), cpus=1 + number % 2) for number in range(7)]
    assert [[job.cell for job in array] for array in slurm._arrays(jobs, 3)] == [  # a real Slurm says the same, slowly
        ["0", "2", "4"],
        ["6"],
        ["1", "3", "5"],
    ]


def test_without_submitit_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "multiflow.bench.engines.slurm")
    with pytest.raises(MultiflowError, match=r"pip install -e '\.\[slurm\]'"):
        find_engine("slurm")
