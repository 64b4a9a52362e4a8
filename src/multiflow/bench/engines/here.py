"""The engine ``here``: one cell after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multiflow.base.errors import MultiflowError
from multiflow.bench.engines import EngineOptions, Job, JobOutcome, Work, attempt, check_no_options


def check(options: EngineOptions) -> None:
    check_no_options("here", options)
    if options.workers > 1:
        raise MultiflowError(
            f"{options.workers} workers were asked for, and engine 'here' is this one process; take engine 'local'"
        )


def run(jobs: Sequence[Job], work: Work, options: EngineOptions) -> Iterator[JobOutcome]:
    check(options)
    for job in jobs:
        yield JobOutcome(job, attempt(work, job))
