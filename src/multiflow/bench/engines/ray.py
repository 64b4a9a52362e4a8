"""Cells on a Ray cluster: a Ray task each, with the cores, devices and memory that its job asks for.

The nodes have multiflow installed and see the folder of results, and that of the data, under the paths of this machine.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.bench.engines import EngineOptions, Job, JobOutcome, Work, attempt

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise MultiflowError(
        "the ray engine needs Ray, which is not installed; in the checkout: pip install -e '.[ray]'"
    ) from error

OPTIONS = ("address", "autoscaling")
OBJECT_STORE = 80 * 2**20  # bytes; what passes through it are the settings of cells
QUIET: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "configure_logging": False}


def check(options: EngineOptions) -> None:
    for name in options.options:
        if name not in OPTIONS:
            raise unknown("option of the ray engine", name, OPTIONS)
    if (value := options.options.get("autoscaling", "no")) not in ("yes", "no"):
        raise MultiflowError(f"autoscaling={value} was given to the ray engine; expected yes or no")


def run(jobs: Sequence[Job], work: Work, options: EngineOptions) -> Iterator[JobOutcome]:
    """Do the jobs on a Ray cluster, at most ``workers`` at once; yield the outcome of each as it ends.

    The cluster is the one at the option ``address`` or at ``RAY_ADDRESS``, the one that this process is connected to
    already, or else a local one that ends with the jobs. A job whose worker dies is done again, ``retries`` times (by
    us: Ray's own retries have no end where its memory monitor kills the worker). Closing the iterator cancels what
    runs.

    Raises:
        MultiflowError: no cluster answers at the address, or none of its nodes has what a job asks for (a cluster that
            adds nodes by itself has the option ``autoscaling=yes``).
    """
    check(options)
    if not jobs:
        return
    with _cluster(jobs, options):
        if options.options.get("autoscaling", "no") != "yes":
            _check_room(jobs)
        task = ray.remote(attempt)
        waiting, running = deque((job, 0) for job in jobs), dict[ray.ObjectRef, tuple[Job, int]]()
        try:
            while waiting or running:
                while waiting and len(running) < options.workers:
                    job, deaths = waiting.popleft()
                    takes = {"num_cpus": job.cpus, "num_gpus": job.gpus, "memory": job.memory or None}
                    ref = task.options(name=job.cell, max_retries=0, **takes).remote(work, job)
                    running[ref] = job, deaths
                [over], _ = ray.wait(list(running))
                job, deaths = running.pop(over)
                error, is_dead = _ending(over)
                if is_dead and deaths < options.retries:
                    waiting.appendleft((job, deaths + 1))
                else:
                    yield JobOutcome(job, error)
        finally:
            for left in running:
                ray.cancel(left, force=True)


@contextmanager
def _cluster(jobs: Sequence[Job], options: EngineOptions) -> Iterator[None]:
    """Be connected to a cluster, and leave it (or end it) in the end if it was not so before."""
    if ray.is_initialized():
        yield
        return
    address = options.options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {
        "num_cpus": options.workers * max((job.cpus for job in jobs), default=1),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
    }
    try:
        _knock(address)
        ray.init(address, **QUIET, **own if address == "local" else {})
    except (RayError, OSError, RuntimeError, ValueError, SystemExit) as error:
        cure = "start one with 'ray start --head', or leave the address out for a local one"
        if "AuthenticationError" in f"{error!r} {error.__cause__!r}":
            cure = "it asks for a token: set RAY_AUTH_MODE=token (and RAY_AUTH_TOKEN_PATH if it is not in ~/.ray)"
        raise MultiflowError(
            f"cannot connect to a Ray cluster at '{address}' ({_first_line(error)}); {cure}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError if nothing listens at an address: Ray would try for minutes, then end the process."""
    if place := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):
        socket.create_connection((place[1], int(place[2])), timeout=10).close()


def _check_room(jobs: Sequence[Job]) -> None:
    """Check that for each job there is a node on which it can run: Ray would wait for one forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for cpus, gpus, memory in dict.fromkeys((job.cpus, job.gpus, job.memory) for job in jobs):
        asked = {"CPU": cpus, "GPU": gpus, "memory": memory}
        if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            raise MultiflowError(
                f"no node of the Ray cluster has what a cell asks for ({_words(asked)}); the nodes have: "
                f"{'; '.join(map(_words, nodes))}; ask for less, or pass autoscaling=yes if the cluster adds nodes "
                "by itself"
            )


def _words(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPUs, {gpus:g} GPUs, {memory / 1e9:.1f} GB"


def _ending(over: ray.ObjectRef) -> tuple[str | None, bool]:
    """Return what went wrong with a task that is over, in one line, or None; and whether its worker died of it."""
    try:
        return ray.get(over), False
    except RayTaskError as error:  # before the work began: the node cannot import it
        return f"the Ray worker failed: {_first_line(error.cause)}", False
    except RayError as error:
        return f"the Ray worker died: {_first_line(error)}", True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
