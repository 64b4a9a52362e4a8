"""Where and how a cell was computed: processor and git revision."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> str:
    """Say in words where this process computes: processor, cores, threads, and the device if it is another."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [f"{platform.system()} {platform.machine()}", _processor(), f"{cores} cores"]
    words.append(f"{torch.get_num_threads()} threads")
    if device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join(word for word in words if word)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def git_revision(results: Path) -> str | None:
    """Return the revision of the checkout that we are in, with ``+`` where tracked files outside of the results differ.

    None outside a checkout, or without git.
    """
    top = _git("rev-parse", "--show-toplevel")
    revision = top and _git("rev-parse", "--short=12", "HEAD")
    if not top or not revision:
        return None
    inside = results.resolve().is_relative_to(Path(top).resolve())
    exclude = [f":(top,exclude){results.resolve().relative_to(Path(top).resolve())}"] if inside else []
    return revision + ("+" if _git("-C", top, "status", "--porcelain", "-uno", "--", ".", *exclude) else "")


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
