"""What `test_places` runs: ``python -m tests.robust.forked MODEL ORDERS.json``, commands in children of one process.

The process has imported everything and loaded a model. ``ORDERS.json`` holds by a name the words of each command, the
folder that it runs in, and the megabytes that are left to it, or null; ``NAME.json`` beside it gets its exit code and
what it said on standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path

import torch

import multiflow as mf
import multiflow.cli.apply
import multiflow.cli.finetune
import multiflow.cli.prune
from multiflow.cli import main


def child(words: list[str], folder: str, megabytes: int | None, said: Path) -> None:
    """Run a command and end the process."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    if megabytes is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)
    code = 1
    try:
        code = main(words)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process with threads cannot be forked
    mf.load_model(sys.argv[1])
    orders = Path(sys.argv[2])
    for name, (words, folder, megabytes) in json.loads(orders.read_text()).items():
        said = orders.with_name(f"{name}.err")
        pid = os.fork()
        if pid == 0:
            child(words, folder, megabytes, said)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        orders.with_name(f"{name}.json").write_text(json.dumps([code, said.read_text()]))
