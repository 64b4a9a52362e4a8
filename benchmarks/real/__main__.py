"""The benchmark on real weights and data: ``python -m benchmarks.real [fetch] [--cache DIR] [--accept NAME]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real.fetch import default_cache, fetch
from multiflow.base.errors import MultiflowError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one step of it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real", description=__doc__)
    parser.add_argument("step", nargs="?", choices=["fetch"], help="only this step; without it all of them")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of archives and files")
    parser.add_argument("--packages", nargs="+", metavar="NAME", help="only these packages")
    parser.add_argument("--accept", nargs="+", default=(), metavar="NAME", help="Debian packages of another release")
    parser.add_argument("--short", action="store_true", help="a cut of the grid")
    given = parser.parse_args(arguments)
    try:
        folders = fetch(given.cache.expanduser(), given.packages, given.accept)
    except MultiflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if missing := [name for name, place in folders.items() if place is None]:
        print(
            f"{len(missing)} of {len(folders)} packages are missing; what needs them is left out: {', '.join(missing)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
