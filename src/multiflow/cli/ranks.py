"""Several processes on the command line: ``torchrun`` starts the same command in each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: imported inside a group, its default arguments keep that group and its threads

from multiflow.base.errors import MultiflowError
from multiflow.base.ranks import Ended, exchange, rank, together
from multiflow.cli.console import say
from multiflow.cli.settings import option_of
from multiflow.families.opening import find_device

BAD_INPUT = 2


@contextmanager
def processes(device: str, settings: Any = None) -> Iterator[str]:
    """Join the processes that ``torchrun`` has started, for the time of the block; yield the device of this one.

    What ends one of them ends all of them: the first says so, and the exit code is that of bad input. Alone, a process
    keeps the device that was given.

    Args:
        device: as it was given.
        settings: of the command, whose options errors name.
    """
    size, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    if size == 1 or "RANK" not in os.environ:
        yield device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with together():
            yield own_device(device, local, size)
    except MultiflowError as error:
        if rank() == 0:
            say(f"error: {error.worded(option_of(settings))}")
        with suppress(Ended):
            exchange("said")  # torchrun stops the others as soon as one is gone
        raise SystemExit(BAD_INPUT) from None
    finally:
        dist.destroy_process_group()


def own_device(device: str, local: int, size: int) -> str:
    """Return the device of the process ``local`` on this machine: each has a GPU of its own.

    >>> own_device("cpu", 1, 2)
    'cpu'
    """
    found = find_device(device)
    if found.type != "cuda":
        return device
    if found.index is not None:
        raise MultiflowError(f"--device {device} is one GPU, and there are {size} processes; give --device cuda")
    own = find_device(f"cuda:{local}")
    torch.cuda.set_device(own)
    return str(own)
