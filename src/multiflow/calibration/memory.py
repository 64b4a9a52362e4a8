"""How much memory there is, asked before a method that needs a lot of it starts."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be taken on a device; None where nobody knows.

    On the CPU the limit of a container counts as well as the machine's memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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
