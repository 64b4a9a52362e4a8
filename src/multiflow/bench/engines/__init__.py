"""Where cells are computed. An engine runs jobs somewhere and says of each when it is over.

An engine is a module of this package with two functions: ``run``, an `Engine`, and ``check(options)``, which raises
what is wrong with its options. It is found by being here and imported when it is asked for; one from outside adds
itself to `ENGINES`. It hands every job to ``work``, which computes the cell and writes its line itself; the engine
carries no results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry


@dataclass(frozen=True)
class Job:
    """A cell to compute, and what it takes; small and picklable."""

    results: str  # absolute path of the folder of results, which all workers see
    cell: str  # id of the cell
    cpus: int = 1  # cores, which is how many threads the worker computes with
    gpus: float = 0.0  # devices, or a share of one; 0 computes on the CPU
    memory: int = 0  # bytes; 0 asks for none in particular
    order: Any = None  # what ``work`` is told; engines carry it and do not look into it


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs jobs."""

    workers: int = 1  # how many jobs at once at most
    retries: int = 1  # how often a job is given to another worker when its own has died
    # settings of one engine, by name, such as the address of a Ray cluster or a Slurm partition
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobOutcome:
    """A job that is over: its cell has a line in the results, or the worker died."""

    job: Job  # the job
    error: str | None = None  # in one line why the worker died; None when ``work`` returned


Work = Callable[[Job], None]
Engine = Callable[[Sequence[Job], Work, EngineOptions], Iterator[JobOutcome]]
"""``engine(jobs, work, options)`` yields the outcome of every job, in the order in which they end.

Jobs start in the order given. ``work`` is a function of a module, so that another process can import it. An exception
of ``work`` itself is an outcome with its text; closing the iterator stops the workers (jobs of Slurm go on).
"""

ENGINES: Registry[Any] = Registry("engine", __name__, late=True)


def find_engine(name: str, options: EngineOptions = EngineOptions()) -> Engine:
    """Return the engine of a name, its options checked.

    Raises:
        MultiflowError: there is none of that name, the library that it needs is not installed, or an option is wrong.
    """
    found = ENGINES[name]
    found.check(options)
    return found.run


def check_no_options(name: str, options: EngineOptions) -> None:
    if given := ", ".join(f"{key}={value}" for key, value in options.options.items()):
        raise MultiflowError(
            f"engine '{name}' has no settings of its own, and {given} was given (--engine-set); leave it out, or take "
            "engine 'ray' or 'slurm'"
        )


def attempt(work: Work, job: Job) -> str | None:
    """Do a job in the process of a worker; return in one line what went wrong, or None."""
    try:
        if not Path(job.results).is_dir():
            raise MultiflowError(
                f"a worker on {gethostname()} does not see the folder of results '{job.results}', into which it "
                "writes; put it on a disk that all workers share"
            )
        work(job)
    except Exception as error:
        said = str(error) if isinstance(error, MultiflowError) else f"{type(error).__name__}: {error}"
        return " ".join(said.split())
    return None
