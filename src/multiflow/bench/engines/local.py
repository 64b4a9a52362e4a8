"""The engine ``local``: several processes on this machine; one that dies is replaced, and its job tried once more."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from multiflow.bench.engines import EngineOptions, Job, JobOutcome, Work, attempt, check_no_options

PATIENCE = 10.0  # seconds that a worker gets to end by itself


@dataclass(frozen=True)
class Given:
    """A job on its way."""

    job: Job  # the job
    deaths: int = 0  # how many workers have died of it


@dataclass
class Worker:
    """A process, our end of the pipe to it, and the job that it has in hand."""

    process: Any
    pipe: Any
    number: int
    given: Given | None = None


def check(options: EngineOptions) -> None:
    check_no_options("local", options)


def run(jobs: Sequence[Job], work: Work, options: EngineOptions) -> Iterator[JobOutcome]:
    """Run jobs in ``options.workers`` processes of their own."""
    check(options)
    waiting = deque(Given(job) for job in jobs)
    workers = [_start(number, work) for number in range(min(options.workers, len(jobs)))]
    try:
        while waiting or any(worker.given for worker in workers):
            for worker in workers:
                if worker.given is None and waiting:
                    worker.given = waiting.popleft()
                    with suppress(OSError):  # it has died: its pipe says so below
                        worker.pipe.send(worker.given.job)
            for pipe in connection.wait([worker.pipe for worker in workers if worker.given]):
                number, worker = next((n, one) for n, one in enumerate(workers) if one.pipe is pipe)
                given, worker.given = worker.given, None
                assert given is not None
                try:
                    yield JobOutcome(given.job, worker.pipe.recv())
                except (EOFError, OSError):
                    worker.process.join()
                    workers[number] = _start(worker.number, work)
                    if given.deaths < options.retries:
                        waiting.appendleft(Given(given.job, given.deaths + 1))
                    else:
                        yield JobOutcome(given.job, _died(worker.process.exitcode, given.deaths + 1))
    finally:
        for worker in workers:
            if worker.given is not None:
                worker.process.terminate()
            worker.pipe.close()  # which ends a worker that waits for a job
        for worker in workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def _start(number: int, work: Work) -> Worker:
    if sys.platform == "linux":  # forked off one that has imported what all need: importing takes seconds
        context: Any = get_context("forkserver")
        context.set_forkserver_preload([work.__module__])
    else:
        context = get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, work, number), name=f"multiflow worker {number}")
    process.start()
    its.close()  # so that its death is the end of the pipe
    return Worker(process, ours, number)


def _serve(pipe: Any, work: Work, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the runner, which ends its workers
    with suppress(EOFError, OSError):
        job = pipe.recv()
        if job.gpus:
            choose_gpu(number)
        while True:
            pipe.send(attempt(work, job))
            job = pipe.recv()


def choose_gpu(number: int) -> None:
    """Show this process one of the GPUs, before it has looked at any: workers take them in turns."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if seen:
        names = seen.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]


def _died(code: int | None, times: int) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            why = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return f"the worker was ended by {name}{why} ({times} times)"
    return f"the worker ended with exit code {code} ({times} times)"
