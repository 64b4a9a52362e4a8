"""Cells as Slurm jobs: job arrays, written and submitted by submitit.

An array holds jobs that ask for the same resources, and at most ``workers`` of it run at once; the next one is
submitted when it is over. Scripts and logs lie in the folder ``slurm`` of the results. The jobs outlive this process:
when it ends early they go on, and the same command given again skips the cells that they have finished.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.bench.engines import EngineOptions, Job, JobOutcome, Work, attempt

try:
    import submitit
except ImportError as error:
    raise MultiflowError(
        "the slurm engine needs submitit, which is not installed; in the checkout: pip install -e '.[slurm]'"
    ) from error

LARGEST_ARRAY = 1000  # jobs; Slurm's default limit
POLL = {"slurm": 5.0, "local": 0.1}  # cluster -> seconds between two looks at its jobs
MINUTES = "60"  # that a job may take, unless the options say more
TAIL = 5  # lines of a dead job's log that its outcome repeats


def check(options: EngineOptions) -> None:
    cluster = options.options.get("cluster", "slurm")
    if cluster not in POLL:
        raise MultiflowError(f"cluster={cluster} is unknown to the slurm engine; expected one of {', '.join(POLL)}")
    if not (minutes := options.options.get("minutes", MINUTES)).isdecimal() or not int(minutes):
        raise MultiflowError(
            f"minutes={minutes} is not a whole number: give the slurm engine what one cell takes at most"
        )


def run(jobs: Sequence[Job], work: Work, options: EngineOptions) -> Iterator[JobOutcome]:
    """Do the jobs by Slurm, at most ``workers`` at once; yield the outcome of each as it ends.

    A job that dies is submitted again, ``retries`` times. Closing the iterator leaves the jobs running and says so.

    Args:
        jobs: all with the same folder of results, on a disk that the nodes share.
        work: a function of a module that the nodes can import.
        options: ``minutes`` (the time limit of a job; 60), ``setup`` (a line of shell that runs before it), ``cluster``
            (``slurm``, or ``local`` for processes of this machine). All others are options of ``sbatch`` by their own
            names (``partition``, ``account``, ``qos``); one that takes no value is given as ``yes``.

    Raises:
        MultiflowError: Slurm is not there or refuses the jobs.
    """
    check(options)
    cluster = options.options.get("cluster", "slurm")
    for array in _arrays(jobs, LARGEST_ARRAY if cluster == "slurm" else options.workers):
        for left in reversed(range(options.retries + 1)):
            died = []
            for job, error, is_dead in _watch(_submit(array, work, cluster, options), array, POLL[cluster]):
                if is_dead and left:
                    died.append(job)
                else:
                    yield JobOutcome(job, error)
            array = died


def _arrays(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    kinds: dict[tuple[int, float, int], list[Job]] = {}
    for job in jobs:
        kinds.setdefault((job.cpus, job.gpus, job.memory), []).append(job)
    for kind in kinds.values():
        yield from (kind[at : at + size] for at in range(0, len(kind), size))


def _submit(array: Sequence[Job], work: Work, cluster: str, options: EngineOptions) -> list[submitit.Job[str | None]]:
    if not array:
        return []
    own = {"cluster", "minutes", "setup"}
    given, one = options.options, array[0]
    flags = {name: value == "yes" or value for name, value in given.items() if name not in own}
    try:
        executor = submitit.AutoExecutor(folder=Path(one.results) / "slurm", cluster=cluster)
        executor.update_parameters(
            name="multiflow",
            timeout_min=int(given.get("minutes", MINUTES)),
            cpus_per_task=one.cpus,
            gpus_per_node=ceil(one.gpus) or None,
            mem_gb=ceil(one.memory / 2**20) / 2**10 or None,
            slurm_array_parallelism=options.workers,
            slurm_additional_parameters=flags,
            **{f"{cluster}_setup": [given["setup"]] if "setup" in given else None},
        )
        return executor.map_array(attempt, [work] * len(array), array)
    except (RuntimeError, OSError, ValueError) as error:  # no Slurm here, or sbatch said no
        listed = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
        raise MultiflowError(
            f"cannot submit {len(array)} job(s) to Slurm: {_tail(str(error))}; submit from a machine that has sbatch, "
            f"with options that it knows (given: {listed})"
        ) from error


def _watch(
    handles: Sequence[submitit.Job[str | None]], array: Sequence[Job], pause: float
) -> Iterator[tuple[Job, str | None, bool]]:
    running = list(zip(handles, array, strict=True))
    try:
        while running:
            over = [pair for pair in running if pair[0].done()]
            for pair in over:
                running.remove(pair)
                yield pair[1], *_ending(pair[0])
            if not over:
                time.sleep(pause)
    except (KeyboardInterrupt, GeneratorExit):
        if running:
            print(
                f"{len(running)} job(s) go on without this process ({running[0][0].job_id} ...): give the same command "
                "again to pick up, finished cells are skipped; scancel stops them",
                file=sys.stderr,
            )
        raise


def _ending(handle: submitit.Job[str | None]) -> tuple[str | None, bool]:
    if handle.exception() is None:
        return handle.result(), False
    said = _tail(handle.stderr() or "") or "it left no log"
    return f"Slurm job {handle.job_id} died: {said} (log: {handle.paths.stderr})", True


def _tail(text: str) -> str:
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-TAIL:])
