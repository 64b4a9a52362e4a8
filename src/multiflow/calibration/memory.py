"""How much memory there is, asked before a method that needs a lot of it starts, and how much was used."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch

from multiflow.base.errors import MultiflowError

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc/self")
GIB = 1 << 30
logger = logging.getLogger("multiflow")


_silent: ContextVar[bool] = ContextVar("silent", default=False)


def announce(what: str, size: int) -> None:
    """Say how many bytes something takes, before it takes them."""
    announce_text(what, f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB")


def announce_text(what: str, amount: str) -> None:
    """Say how much of something it will be, time or memory, before it is taken."""
    if not _silent.get():
        logger.info("%s: %s", what, amount)


@contextmanager
def unannounced() -> Iterator[None]:
    """Say nothing of the memory of parts inside the block: it was said of the whole."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def check_fits(what: str, need: int, free: int | None, advice: str, *, field: str = "") -> None:
    """Refuse what needs more bytes than are free; ``None`` are free where nobody knows."""
    if free is not None and need > free:
        said = f"{what} need {need / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free; {advice}"
        raise MultiflowError(said, field=field)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be taken on a device; None where nobody knows.

    On the CPU the limit of a container counts as well as the machine's memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # ours to use again
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    free = [amount for amount in (_machine(), _container()) if amount is not None]
    return min(free, default=None)


def _machine() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _container() -> int | None:
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used) + int(cached.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def reset_peak_memory() -> None:
    """Begin to measure the peak anew, where the system can do that (Linux)."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> int:
    """Return the most bytes that this process held in memory since the last reset; elsewhere since it started."""
    try:
        for line in (PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back_memory() -> None:
    """Give freed memory back to the system, where the C library keeps it: blocks that come and go leave holes."""
    with suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL(None).malloc_trim(0)
