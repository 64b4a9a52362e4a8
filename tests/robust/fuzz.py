"""Damaged and hostile files against everything that reads files: ``python -m tests.robust.fuzz --cases N --seconds S``.

A target makes a valid folder and reads it again. A case damages a copy of the folder and reads that. Allowed are the
value that is there, or a `MultiflowError` of one line that can be printed, within 10 seconds and 2 GB. Each case is a
function of the seed and its number: ``--only N`` repeats one. What is not allowed is kept as a folder in ``findings/``,
which `test_fuzz` reads from then on.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from multiflow.base.errors import MultiflowError
from tests.robust.mutate import damage

SECONDS = 10
WAITING = 6  # times as long a reader may take that does not compute, but waits
MEMORY = 2 * 2**30
HELD = 2**30  # more than before, of what a reader may have in memory: no valid file here has a thousandth of that
TURN = 0.2  # seconds between two looks at a process
SHOWN = 60  # seconds between two words on how far it is
FINDINGS = Path(__file__).parent / "findings"


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Args:
        name: for reports and the names of findings.
        make: writes valid files into a folder.
        read: reads the folder and returns what it holds, as values that can be compared.
        checked: whether the files have checksums: then a damaged file gives the same value or an error, never another.
        weight: how often it is chosen, next to others.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    checked: bool = False
    weight: float = 1.0


class TooLong(BaseException):
    """A reader took longer than it may."""


@cache
def targets() -> dict[str, Target]:
    """Return all targets: each module in ``targets/`` lists some as TARGETS."""
    package = importlib.import_module("tests.robust.targets")
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    return {target.name: target for module in modules for target in module.TARGETS}


def outcome(target: Target, folder: Path, expected: Any = None) -> str | None:
    """Read a folder; return what was not allowed about it, or None."""
    ticks = count(1)

    def tick(number: int, frame: FrameType | None) -> None:
        # counted in ticks, not by the clock: a process that is stopped and goes on has not waited
        if number == signal.SIGPROF or next(ticks) >= WAITING:
            raise TooLong

    handlers = {way: signal.signal(way, tick) for way in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing; other processes may hold a processor meanwhile
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        value = target.read(folder)
    except MultiflowError as error:
        said = str(error)
        fine = said.replace("\n", "").isprintable() and len(said) < 4_000
        return None if fine else f"unprintable or endless message: {said[:200]!r}"
    except TooLong:
        return f"longer than {SECONDS} s\n{traceback.format_exc()}"
    except BaseException as error:  # panics of other libraries are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}\n{traceback.format_exc()}"
    finally:  # a test has a limit of its own, by one of these signals
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, *timer)
        for way, handler in handlers.items():
            signal.signal(way, handler)
    return f"a silent change: {value!r:.300}" if target.checked and value != expected else None


@dataclass(frozen=True)
class Case:
    """One damaged folder: where it is, what was done to it, and what came of it."""

    number: int
    target: Target
    damage: str
    folder: Path
    wrong: str | None


def read_valid(name: str, work: Path) -> Any:
    """Make what is valid of a target, and read it: that must be possible."""
    folder = work / f"valid-{name}"
    targets()[name].make(folder)
    return targets()[name].read(folder)


def run_cases(
    seed: int, numbers: range, names: list[str], work: Path, values: dict[str, Any] | None = None
) -> Iterator[Case]:
    """Run cases by their numbers; ``values`` are those of `read_valid`, which is called for the others."""
    chosen = [targets()[name] for name in names]
    values = {} if values is None else values
    for number in numbers:
        random = Random(f"{seed}-{number}")
        target = random.choices(chosen, [target.weight for target in chosen])[0]
        if target.name not in values:
            values[target.name] = read_valid(target.name, work)
        folder = work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / f"valid-{target.name}", folder)
        done = damage(folder, random)
        print(f"{number} {target.name}: {done}", file=sys.stderr, flush=True)
        yield Case(number, target, done, folder, outcome(target, folder, values[target.name]))


def work(arguments: argparse.Namespace) -> int:
    """Run the cases of one process, under its limits; print what was found, and how many were run."""
    import torch

    names = arguments.targets or sorted(targets())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as place:
        values = {}
        for name in names:  # imports count as the process itself
            values[name] = read_valid(name, Path(place))
            print(f"ready: {name}", file=sys.stderr, flush=True)  # whoever watches sees that it goes on
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        end, ran = time.monotonic() + arguments.seconds, 0
        numbers = range(arguments.first, arguments.first + arguments.cases)
        for case in run_cases(arguments.seed, numbers, names, Path(place), values):
            ran += 1
            if (held := _most_held(os.getpid())) > used + HELD:
                case = replace(case, wrong=case.wrong or f"it held {held >> 20} MB")
            if held > used + HELD // 2:
                Path("/proc/self/clear_refs").write_text("5")  # the most that is held is counted anew
            if case.wrong:
                keep(case, arguments.findings)
                print(f"FOUND {case.number} {case.target.name}: {case.damage}: {case.wrong}", flush=True)
            if time.monotonic() > end:
                break
    print(f"DONE {ran}", flush=True)
    return 0


def keep(case: Case, findings: Path) -> None:
    """Keep a damaged folder, one for each target and kind of error."""
    kind = "".join(c for c in (case.wrong or "").strip().splitlines()[-1] if c.isalnum() or c == " ")[:60].replace(
        " ", "-"
    )
    folder = findings / case.target.name / kind
    if not folder.exists():
        shutil.copytree(case.folder, folder, symlinks=True, ignore=_irregular)


def _irregular(folder: str, names: list[str]) -> list[str]:
    """Name what is no small file: pipes and devices are made anew by whoever looks for them."""
    paths = [Path(folder) / name for name in names]
    return [p.name for p in paths if not p.is_dir() and (p.is_symlink() or not p.is_file() or p.stat().st_size > 2**20)]


def main(words: list[str] | None = None) -> int:
    """Run cases in processes of their own; one that ends otherwise than by itself is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.robust.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2_000, metavar="N", help="how many cases")
    parser.add_argument("--seconds", type=float, default=3_600, metavar="S", help="for how long at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="repeat one case")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="some of the targets, all by default")
    parser.add_argument("--findings", type=Path, default=FINDINGS, metavar="DIR", help="where findings are kept")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.only is not None:
        arguments.first, arguments.cases = arguments.only, 1
    if arguments.worker:
        return work(arguments)
    end, first, last, found = (
        time.monotonic() + arguments.seconds,
        arguments.first,
        arguments.first + arguments.cases,
        [],
    )
    ran = peak = 0
    while first < last and (left := end - time.monotonic()) > 0:
        command = [
            sys.executable,
            "-m",
            "tests.robust.fuzz",
            "--worker",
            "--seed",
            str(arguments.seed),
            "--first",
            str(first),
        ]
        command += ["--cases", str(last - first), "--seconds", str(left), "--findings", str(arguments.findings)]
        command += ["--targets", *arguments.targets] if arguments.targets else []
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, stdout=said, stderr=log)
            ended, held = _watch(process, log)
            said.seek(0)
            log.seek(0)
            peak = max(peak, held)
            output, logged = said.read(), log.read().splitlines()
            steps, said_last = [line for line in logged if line[:1].isdigit()], "\n".join(logged[-20:])
        found += [line for line in output.splitlines() if line.startswith("FOUND")]
        print("".join(part for part in output.splitlines(keepends=True) if not part.startswith("DONE")), end="")
        if ended == "0":
            ran += int(output.rsplit("DONE ", 1)[1])
            break
        if not steps:
            print(f"the process ended with {ended} before the first case\n{said_last}")
            return 2
        number = int(steps[-1].split()[0])
        found.append(f"FOUND {steps[-1]}: the process ended with {ended}")
        print(found[-1])
        ran += number + 1 - first
        first = number + 1
    kinds = Counter(line.split(":")[0].split()[-1] for line in found)
    most = f"; {peak >> 20} MB the most that a process held" if peak else ""
    print(f"{ran} cases, {len(found)} findings {dict(kinds) or ''}".rstrip() + most)
    return int(bool(found))


def _watch(process: subprocess.Popen[bytes], log: Any) -> tuple[str, int]:
    """Wait for a process as long as its log grows; return how it ended, and the most bytes that it held.

    Turns of waiting are counted, not seconds: where both processes are stopped for a while, nothing hangs.
    """
    size, turns, held, shown = -1, 0, 0, time.monotonic()
    while process.poll() is None:
        time.sleep(TURN)
        held = max(held, _most_held(process.pid))
        log.seek(0, 2)
        turns = turns + 1 if log.tell() == size else 0
        size = log.tell()
        if time.monotonic() - shown > SHOWN:
            shown = time.monotonic()
            log.seek(max(0, size - 5_000))
            last = (log.read().splitlines() or ["none yet"])[-1]
            print(f"{time.strftime('%H:%M:%S')} at case {last[:100]}", flush=True)
        limit = 2 * WAITING * SECONDS if size > 0 else 300
        if turns * TURN > limit:
            process.kill()
            process.wait()
            return f"{process.returncode}, killed by this runner after {limit} s without a case", held
    killed = " (killed by another, as a system short of memory does)" if process.returncode == -signal.SIGKILL else ""
    return f"{process.returncode}{killed}", held


def _most_held(process: int) -> int:
    """Peak resident memory of a process in bytes; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(main())
