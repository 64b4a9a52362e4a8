"""One bit of a file of ours is flipped, and the file is read: ``python -m tests.robust.flips --flips 1000``.

Every artifact is tried: masks, changed weights, results, statistics, checkpoints of every kind, packed models and
their folders, with all neurons and with fewer, records of the benchmark, figures, metrics and settings of runs,
evaluations, activations of a walk, and recoveries, searches and walks that go on. A flip counts as noticed
where reading ends in a `MultiflowError`. Files that others define, such as published masks, hold bits that nobody
reads: there a flip may also leave everything as it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from multiflow.base.errors import MultiflowError
from tests.robust.targets import artifacts, folders

ALSO = ("records", "metrics", "figures", "evaluation")
"""What may lose lines at its end, or all its signs at once, by more than a flipped bit."""
FOLDERS = [target for target in folders.TARGETS if target.checked]
OURS = [*(target for target in artifacts.TARGETS if target.checked or target.name in ALSO), *FOLDERS]
OF_OTHERS = ("published", "release")


class Flip(NamedTuple):
    """Which bit of which file was flipped, and whether that was noticed."""

    target: str
    file: Path
    bit: int
    noticed: bool


def flips(names: list[str], each: int, seed: int, work: Path) -> Iterator[Flip]:
    """Flip a bit of one of the files of each target, ``each`` times: half of them among the first bytes of the file."""
    for target in [target for target in OURS if target.name in names]:
        folder = work / target.name
        target.make(folder)
        expected = target.read(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        random = Random(f"{seed}-{target.name}")
        for _ in range(each):
            path = random.choice(files)
            whole = path.read_bytes()
            data = bytearray(whole)
            bit = random.randrange(8 * (min(len(data), 2_000) if random.random() < 0.5 else len(data)))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            try:
                noticed = target.read(folder) == expected and target.name in OF_OTHERS
            except MultiflowError:
                noticed = True
            yield Flip(target.name, path.relative_to(folder), bit, noticed)
            path.write_bytes(whole)
        shutil.rmtree(folder)


def main() -> int:
    """Flip bits, and print how many were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.robust.flips", description=__doc__)
    parser.add_argument("--flips", type=int, default=1_000, metavar="N", help="of each kind of artifact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[target.name for target in OURS], metavar="NAME")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    missed = 0
    with tempfile.TemporaryDirectory() as place:
        for name in given.only:
            found = list(flips([name], given.flips, given.seed, Path(place)))
            unnoticed = [flip for flip in found if not flip.noticed]
            print(f"{name}: {len(found) - len(unnoticed)} of {len(found)} noticed", *unnoticed[:5], flush=True)
            missed += len(unnoticed)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
