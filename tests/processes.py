"""Processes that tests start: each has its limit of seconds, and nothing of it is left when its block ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
LIMIT = 120.0  # seconds after which a process counts as hanging
PYTHON = sys.executable
TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


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


def run_two(*words: object, **options: Any) -> None:
    """Run a program to its end as two processes of one group, with the environment that torchrun gives them."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        own = [{**group, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        for process in [stack.enter_context(start(*words, env=env, stderr=PIPE, **options)) for env in own]:
            said = process.communicate(timeout=LIMIT)[1]
            assert process.returncode == 0, said


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: Popen[str]) -> None:
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
            is_helper = "multiprocessing.resource_tracker" in " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and not is_helper:
                found.append(child)
    return found
