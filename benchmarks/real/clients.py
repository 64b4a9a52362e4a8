"""Ask a package's own client for its archive. None of them installs, builds or runs anything of it here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.real.packages import Package
from multiflow.base.errors import MultiflowError

SECONDS = 1800
Client = Callable[[Package], list[str]]


def _pip(package: Package) -> list[str]:
    """A wheel only: to look into a source archive pip would have to run it."""
    wanted = f"{package.name}=={package.version}"
    return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", wanted]


def _npm(package: Package) -> list[str]:
    return ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]


def _apt(package: Package) -> list[str]:
    """The version of this machine's release: apt knows no other."""
    return ["apt-get", "download", "--quiet=2", package.name]


CLIENTS: Mapping[str, Client] = {"pypi": _pip, "npm": _npm, "debian": _apt}
"""Registry -> the command that writes the archive into the folder it runs in."""
ENDINGS: Mapping[str, str] = {"pypi": ".whl", "npm": ".tgz", "debian": ".deb"}


def command(package: Package) -> str:
    """Return the client's command as a person would type it."""
    return " ".join(CLIENTS[package.registry](package)).replace(sys.executable, "python")


def download(package: Package, downloads: Path, seconds: float = SECONDS) -> Path:
    """Let the client fetch the archive of a package into a folder; returns the archive.

    Raises:
        MultiflowError: there is no such client on this machine, or it brought nothing (no network, no such package).
    """
    words = CLIENTS[package.registry](package)
    if shutil.which(words[0]) is None:
        raise MultiflowError(f"the client '{words[0]}' is not on this machine")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".part-") as part:
        try:
            ran = subprocess.run(words, cwd=part, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise MultiflowError(f"'{command(package)}' had not ended after {seconds:.0f} seconds") from None
        found = sorted(Path(part).glob(f"*{ENDINGS[package.registry]}"))
        if ran.returncode or not found:
            said = [line for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
            last = f": {said[-1].strip()[:200]}" if said else ""
            raise MultiflowError(f"'{command(package)}' brought nothing{last}")
        return found[0].replace(downloads / found[0].name)
