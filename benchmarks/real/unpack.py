"""Take files out of an archive: zip (wheels too), tar, Debian package. Nothing of it is run or installed.

A Debian package is opened by ``dpkg-deb --fsys-tarfile``, which writes out the files and runs no script of it. Only
plain files are taken; one whose path leaves the folder is an error, and so is more than was expected.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from multiflow.base.errors import MultiflowError
from multiflow.base.runs import whole_folder

MOST_FILES = 50_000
MOST = 1_000_000_000
CHUNK = 1 << 20


def unpack(archive: Path, out: Path, wanted: Sequence[str] = ("*",), most: int = MOST) -> Path:
    """Write the plain files of an archive under a folder, which appears whole; returns the folder.

    Args:
        archive: a ``.whl``, ``.zip``, ``.tgz``, ``.tar.*`` or ``.deb`` file.
        out: a new or empty folder.
        wanted: patterns of their paths in the archive; the others are left out.
        most: bytes that they have at most, all together.

    Raises:
        MultiflowError: it is no archive, is damaged, has a path that leaves the folder, or more files or bytes.
    """
    left, count = most, 0
    with whole_folder(out) as folder, _damage(archive):
        for path, file in _files(archive):
            place = _safe(path, archive)
            if not any(fnmatchcase(str(place), pattern) for pattern in wanted):
                continue
            count += 1
            if count > MOST_FILES:
                raise MultiflowError(f"'{archive}' holds more than {MOST_FILES} files; expected fewer, delete it")
            left -= _copy(file, folder / place, left)
            if left < 0:
                raise MultiflowError(f"what '{archive}' holds is larger than {most} bytes; expected less, delete it")
        if not count:
            raise MultiflowError(f"'{archive}' holds no file of {', '.join(wanted)}; fetch the version of the table")
    return out


def _safe(path: str, archive: Path) -> PurePosixPath:
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or "\\" in path or not place.parts:
        raise MultiflowError(f"'{archive}' holds the path '{path}', which leaves the folder; delete the archive")
    return place


def _copy(file: IO[bytes], place: Path, most: int) -> int:
    """Copy up to ``most`` bytes and one; returns how many."""
    place.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with place.open("xb") as to:
        while written <= most and (block := file.read(min(CHUNK, most + 1 - written))):
            written += to.write(block)
    return written


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix in (".whl", ".zip"):
        yield from _of_zip(archive)
    elif archive.suffix == ".deb":
        with _tar_of_deb(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            yield from _of_tar(tar)
    else:
        with tarfile.open(archive, "r|*") as tar:
            yield from _of_tar(tar)


def _of_zip(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if not info.is_dir() and kind in (0, stat.S_IFREG):
                with opened.open(info) as file:
                    yield info.filename, file


def _of_tar(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in tar:
        if member.isfile():
            file = tar.extractfile(member)
            assert file is not None
            yield member.name, file


@contextmanager
def _tar_of_deb(archive: Path) -> Iterator[IO[bytes]]:
    if (program := shutil.which("dpkg-deb")) is None:
        raise MultiflowError(f"'{archive}' needs the program dpkg-deb to be opened; install dpkg")
    with subprocess.Popen([program, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            process.stdout.read()  # what follows the end of the tar
            if process.wait():
                raise MultiflowError(f"'{archive}' is no Debian package or is damaged; delete it and fetch it again")
        finally:
            process.kill()


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError) as error:
        raise MultiflowError(f"'{archive}' is no archive or is damaged ({error}); delete it and fetch it") from error
