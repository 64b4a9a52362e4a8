"""Runs the commands of docs/first-ten-minutes.md and writes what they print, and how long they take, behind them.

``python docs/first_ten_minutes.py``. Seconds are those that the processor spent, which other work on the machine does
not lengthen. A test compares what stands on the page with what the commands print, all numbers aside.
"""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).with_name("first-ten-minutes.md")
COMMANDS = re.compile(r"```bash\n(.*?)```\n(?:```text\n\$ .*?```\n)?", re.S)
"""A block of commands, and behind it what they printed, which begins with the first of them."""
LINES = 14  # of what a command prints; a page is no terminal


def screen(command: str, folder: str) -> str:
    """Run a command and return it with its time and the first lines that it prints."""
    before = _spent()
    words = [sys.executable, "-m", "multiflow", *shlex.split(command)[1:]]
    printed = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    seconds = max(1, round(_spent() - before))
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    rest = [f"... {len(lines) - LINES} more lines"] if len(lines) > LINES + 1 else lines[LINES:]
    return "\n".join([f"$ {command}    # {seconds} s of one core", *lines[:LINES], *rest])


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:

        def renewed(found: re.Match[str]) -> str:
            shown = "\n\n".join(screen(command, folder) for command in found[1].splitlines())
            return f"```bash\n{found[1]}```\n```text\n{shown}\n```\n"

        PAGE.write_text(COMMANDS.sub(renewed, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
