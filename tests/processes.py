"""Processes that tests start: each has its limit of seconds, and nothing of it is left when its block ends.

A function in a process of its own is forked off one that has imported everything (`tests.imported`) and starts once:
importing costs more than what such a test does. Programs are started as programs.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import forkserver, get_context
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
LIMIT = 120.0  # seconds after which a process counts as hanging
PYTHON = sys.executable
HELPERS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")


@contextmanager
def start(*words: object, env: Mapping[str, str] | None = None, **options: Any) -> Iterator[Popen[str]]:
    """Start a program on one thread; at the end of the block it is killed, with all that it has started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})}
    command = [str(word) for word in words]
    with Popen(command, text=True, env=environment, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            end(process)


def run(
    *words: object, limit: float = LIMIT, check: bool = False, env: Mapping[str, str] | None = None, **options: Any
) -> CompletedProcess[str]:
    """Run a program to its end; `subprocess.TimeoutExpired` if it does not come within the limit."""
    with start(*words, env=env, stdout=PIPE, stderr=PIPE, **options) as process:
        out, err = process.communicate(timeout=limit)
    done = CompletedProcess([str(word) for word in words], process.returncode, out, err)
    assert not check or done.returncode == 0, done
    return done


def ready_to_fork() -> None:
    """Start the process that all others are forked off, if it has not been started yet."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "src")))
    try:
        forkserver.set_forkserver_preload(["tests.imported"])
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Forked(NamedTuple):
    """A process that runs a function, and the files of what it prints."""

    process: Any
    out: Path
    err: Path

    def end(self, limit: float = LIMIT) -> int:
        """Wait for its end, at most some seconds; return its exit code, which is negative after a signal."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"no end after {limit} seconds: {self.err.read_text()}"
        return int(self.process.exitcode)


@contextmanager
def fork(function: Callable[..., object], *args: object, env: Mapping[str, str] | None = None) -> Iterator[Forked]:
    """Call a function of a module in a process of its own; at the end of the block it is killed, with its children.

    Warnings are errors there, as in tests; what is random is so anew; the folder is that of this process.
    """
    ready_to_fork()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(env or {})}
        process = get_context("forkserver").Process(target=_call, args=(function, args, environment, *map(str, files)))
        process.start()
        try:
            yield Forked(process, *files)
        finally:
            end(process)
            process.join(LIMIT)


def _call(
    function: Callable[..., object], args: tuple[object, ...], environment: Mapping[str, str], *files: str
) -> None:
    os.setsid()
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    warnings.simplefilter("error")
    function(*args)


def forked(function: Callable[..., object], *args: object, limit: float = LIMIT) -> str:
    """Call a function in a process of its own and wait for its end, a good one; return what it printed."""
    with fork(function, *args) as one:
        assert one.end(limit) == 0, one.err.read_text()
        return one.out.read_text()


def fork_two(function: Callable[..., object], *args: object) -> None:
    """Call a function in two processes of one group, with the environment that torchrun gives them."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        own = [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        for one in [stack.enter_context(fork(function, *args, env=env)) for env in own]:
            assert one.end() == 0, one.err.read_text()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: Any) -> None:
    """Kill a process, its children in whatever group they are, and the orphans of its own group."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def children() -> list[psutil.Process]:
    """The processes that this one has started and that live, without the helpers of `multiprocessing`."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            is_helper = child.ppid() == os.getpid() and HELPERS.search(" ".join(child.cmdline()))
            if child.status() != psutil.STATUS_ZOMBIE and not is_helper:
                found.append(child)
    return found
